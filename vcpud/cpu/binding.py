"""The functions of the Unicorn library on the hot path, with fixed prototypes.

The binding's methods check and convert their arguments at every call (77-95 us for a register file); these take
0.3-2 us. All release the GIL.
"""

from __future__ import annotations

import ctypes
from typing import Any

from unicorn import unicorn_const
from unicorn.unicorn_py3 import unicorn as _unicorn

Uc: Any = _unicorn.Uc
"""The binding's engine class, untyped: what the package exports is typed for Python 2."""
uclib: Any = _unicorn.uclib
"""The Unicorn library itself."""

HOOK_EVERYWHERE = (1, 0)
"""Begin above end: Unicorn calls the hook at every address."""


def _function(name: str, *arguments: Any) -> Any:
    # A prototype of our own, because argtypes set on the library's function object would bind the binding too.
    return ctypes.CFUNCTYPE(ctypes.c_int, *arguments)((name, uclib))


reg_read = _function("uc_reg_read", ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
reg_write = _function("uc_reg_write", ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
reg_read_batch = _function("uc_reg_read_batch", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
reg_write_batch = _function("uc_reg_write_batch", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
control = _function("uc_ctl", ctypes.c_void_p, ctypes.c_uint)

TLB_FLUSH = unicorn_const.UC_CTL_TLB_FLUSH | unicorn_const.UC_CTL_IO_WRITE << 30
TB_FLUSH = unicorn_const.UC_CTL_TB_FLUSH | unicorn_const.UC_CTL_IO_WRITE << 30
"""``uc_ctl`` control words; the binding offers no TLB flush."""


def handle_of(uc: Any) -> int:
    """The ``uc_engine *`` behind ``uc``."""
    return int(uc._uch.value)


def add_hook(uc: Any, kind: int, function: int | None, user_data: int, instruction: int | None = None) -> None:
    """Add the native function at address ``function`` as a hook of ``kind``. Raises OSError if Unicorn refuses."""
    hook = ctypes.c_size_t()
    begin, end = HOOK_EVERYWHERE
    arguments: list[Any] = [
        *(ctypes.c_void_p(handle_of(uc)), ctypes.byref(hook), ctypes.c_int(kind), ctypes.c_void_p(function)),
        *(ctypes.c_void_p(user_data), ctypes.c_uint64(begin), ctypes.c_uint64(end)),
    ]
    if instruction is not None:
        arguments.append(ctypes.c_int(instruction))
    error = uclib.uc_hook_add(*arguments)
    if error != unicorn_const.UC_ERR_OK:
        raise OSError(f"uc_hook_add of kind {kind}: Unicorn error {error}")


def entry_of(address: int) -> Any:
    """The native function ``int(uc_engine *, state)`` at ``address``, to be called without the GIL."""
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(address)
