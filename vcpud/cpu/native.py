"""Loads and stores at a raw address, for code that numba compiles and Unicorn calls.

Everything is an int64, addresses too: numba turns a mix of int64 and uint64 into a float.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _load(bits: int) -> Any:
    """An intrinsic ``load(address: int64) -> int64`` of ``bits`` bits, zero-extended."""

    def load(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.int64(types.int64), codegen

    return intrinsic(load)


def _store(bits: int) -> Any:
    """An intrinsic ``store(address: int64, value: int64)`` of the low ``bits`` bits."""

    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            stored = arguments[1] if bits == 64 else builder.trunc(arguments[1], ir.IntType(bits))
            builder.store(stored, pointer)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return intrinsic(store)


load64 = _load(64)
load32 = _load(32)
store64 = _store(64)
store32 = _store(32)
store8 = _store(8)
