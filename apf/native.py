"""Atomic memory access and futexes as native building blocks for numba functions.

Addresses are plain integers. Everything here is sequentially consistent: the waiting protocols built on it
(``apf.clockcells``) are of the form "announce, then look", and lose wake-ups on anything weaker.
"""

# numba's decorators are untyped; what they decorate is typed here by signature strings instead.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_SYS_SCHED_YIELD = 24
_SYS_FUTEX = 202  # x86-64
_FUTEX_WAIT = 0  # not PRIVATE: the words are shared between processes
_FUTEX_WAKE = 1

_SYS_WRITE = 1
_SYS_PREAD = 17
_SYS_PWRITE = 18
_SYS_PWRITEV = 296

_syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))


def _pointer(builder, address, bits):
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


@intrinsic
def load_i64(typingctx, address):
    """Atomic load of the int64 at ``address``."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_pointer(builder, args[0], 64), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_i64(typingctx, address, value):
    """Atomic store of the int64 at ``address``."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], _pointer(builder, args[0], 64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add_i64(typingctx, address, value):
    """Atomic add to the int64 at ``address``; returns the value before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _pointer(builder, args[0], 64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def replace_i64(typingctx, address, before, value):
    """Atomically store ``value`` if the int64 at ``address`` is ``before``; whether it was."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(builder, args[0], 64)
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@njit("void(int64, int64)", cache=True, nogil=True)
def futex_wake(address, count):
    """Count the futex up (the low half of an int64 cell) and wake up to ``count`` of its waiters."""
    add_i64(address, 1)
    _syscall(_SYS_FUTEX, address, _FUTEX_WAKE, count, 0, 0, 0)


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def futex_wait(address, seen, timespec):
    """Sleep while the futex still counts ``seen``; ``timespec`` is the address of a relative timeout.

    Returns 0 or -1 (woken, timed out, interrupted, or it counted on already): the caller looks again in any case.
    """
    return _syscall(_SYS_FUTEX, address, _FUTEX_WAIT, seen & 0xFFFFFFFF, timespec, 0, 0)


@njit("void()", cache=True, nogil=True)
def sched_yield():
    """Let others that wait for this core have it."""
    _syscall(_SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def write_fd(descriptor, address, size):
    """Write ``size`` bytes at ``address`` to a file descriptor."""
    return _syscall(_SYS_WRITE, descriptor, address, size, 0, 0, 0)


@njit("int64(int64, int64, int64, int64)", cache=True, nogil=True)
def read_fd_at(descriptor, address, size, offset):
    """Read ``size`` bytes at ``offset`` of a file to ``address``; how many were, or -1."""
    return _syscall(_SYS_PREAD, descriptor, address, size, offset, 0, 0)


@njit("int64(int64, int64, int64, int64)", cache=True, nogil=True)
def write_fd_at(descriptor, address, size, offset):
    """Write ``size`` bytes at ``address`` to ``offset`` of a file; how many were, or -1."""
    return _syscall(_SYS_PWRITE, descriptor, address, size, offset, 0, 0)


@njit("int64(int64, int64, int64, int64)", cache=True, nogil=True)
def write_fd_vector(descriptor, vector, count, offset):
    """Write the ``count`` pieces of an iovec array, as ``pwritev`` takes it, to ``offset`` of a file: bytes, or -1."""
    return _syscall(_SYS_PWRITEV, descriptor, vector, count, offset, 0, 0)


@intrinsic
def pointer_u64(typingctx, address):
    """``address`` as a pointer to 64-bit words, for ``numba.carray``."""

    def codegen(context, builder, signature, args):
        return _pointer(builder, args[0], 64)

    return types.CPointer(types.uint64)(types.int64), codegen


@intrinsic
def pointer_u8(typingctx, address):
    """``address`` as a pointer to bytes, likewise."""

    def codegen(context, builder, signature, args):
        return _pointer(builder, args[0], 8)

    return types.CPointer(types.uint8)(types.int64), codegen
