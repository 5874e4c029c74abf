from apf.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TakeTrapsRequest(_message.Message):
    __slots__ = ("time_ns", "seq", "registers", "attach", "booted", "tick", "not_present", "page_ready", "syscall", "exception", "stopped")
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REGISTERS_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    BOOTED_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    NOT_PRESENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_READY_FIELD_NUMBER: _ClassVar[int]
    SYSCALL_FIELD_NUMBER: _ClassVar[int]
    EXCEPTION_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    time_ns: int
    seq: int
    registers: bytes
    attach: _types_pb2.Attach
    booted: Booted
    tick: TickArrived
    not_present: NotPresentArrived
    page_ready: PageReadyArrived
    syscall: SyscallRaised
    exception: ExceptionRaised
    stopped: Stopped
    def __init__(self, time_ns: _Optional[int] = ..., seq: _Optional[int] = ..., registers: _Optional[bytes] = ..., attach: _Optional[_Union[_types_pb2.Attach, _Mapping]] = ..., booted: _Optional[_Union[Booted, _Mapping]] = ..., tick: _Optional[_Union[TickArrived, _Mapping]] = ..., not_present: _Optional[_Union[NotPresentArrived, _Mapping]] = ..., page_ready: _Optional[_Union[PageReadyArrived, _Mapping]] = ..., syscall: _Optional[_Union[SyscallRaised, _Mapping]] = ..., exception: _Optional[_Union[ExceptionRaised, _Mapping]] = ..., stopped: _Optional[_Union[Stopped, _Mapping]] = ...) -> None: ...

class Booted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TickArrived(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NotPresentArrived(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: int
    def __init__(self, token: _Optional[int] = ...) -> None: ...

class PageReadyArrived(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: int
    def __init__(self, token: _Optional[int] = ...) -> None: ...

class SyscallRaised(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExceptionRaised(_message.Message):
    __slots__ = ("vector", "address", "rip")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RIP_FIELD_NUMBER: _ClassVar[int]
    vector: int
    address: int
    rip: int
    def __init__(self, vector: _Optional[int] = ..., address: _Optional[int] = ..., rip: _Optional[int] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TakeTrapsResponse(_message.Message):
    __slots__ = ("seq", "at_ns", "attached", "dispatch")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_FIELD_NUMBER: _ClassVar[int]
    seq: int
    at_ns: int
    attached: _types_pb2.Attached
    dispatch: Dispatch
    def __init__(self, seq: _Optional[int] = ..., at_ns: _Optional[int] = ..., attached: _Optional[_Union[_types_pb2.Attached, _Mapping]] = ..., dispatch: _Optional[_Union[Dispatch, _Mapping]] = ...) -> None: ...

class Dispatch(_message.Message):
    __slots__ = ("task", "asid", "account", "registers", "run_until_ns", "apf_ns", "spaces", "async_pf_en")
    class Account(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACCOUNT_UNSPECIFIED: _ClassVar[Dispatch.Account]
        ACCOUNT_IDLE: _ClassVar[Dispatch.Account]
        ACCOUNT_COUNTING: _ClassVar[Dispatch.Account]
        ACCOUNT_FAULTING: _ClassVar[Dispatch.Account]
        ACCOUNT_OTHER: _ClassVar[Dispatch.Account]
    ACCOUNT_UNSPECIFIED: Dispatch.Account
    ACCOUNT_IDLE: Dispatch.Account
    ACCOUNT_COUNTING: Dispatch.Account
    ACCOUNT_FAULTING: Dispatch.Account
    ACCOUNT_OTHER: Dispatch.Account
    TASK_FIELD_NUMBER: _ClassVar[int]
    ASID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    REGISTERS_FIELD_NUMBER: _ClassVar[int]
    RUN_UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    APF_NS_FIELD_NUMBER: _ClassVar[int]
    SPACES_FIELD_NUMBER: _ClassVar[int]
    ASYNC_PF_EN_FIELD_NUMBER: _ClassVar[int]
    task: int
    asid: int
    account: Dispatch.Account
    registers: bytes
    run_until_ns: int
    apf_ns: int
    spaces: _containers.RepeatedCompositeFieldContainer[AddressSpace]
    async_pf_en: int
    def __init__(self, task: _Optional[int] = ..., asid: _Optional[int] = ..., account: _Optional[_Union[Dispatch.Account, str]] = ..., registers: _Optional[bytes] = ..., run_until_ns: _Optional[int] = ..., apf_ns: _Optional[int] = ..., spaces: _Optional[_Iterable[_Union[AddressSpace, _Mapping]]] = ..., async_pf_en: _Optional[int] = ...) -> None: ...

class AddressSpace(_message.Message):
    __slots__ = ("asid", "extents")
    ASID_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    asid: int
    extents: _containers.RepeatedCompositeFieldContainer[Extent]
    def __init__(self, asid: _Optional[int] = ..., extents: _Optional[_Iterable[_Union[Extent, _Mapping]]] = ...) -> None: ...

class Extent(_message.Message):
    __slots__ = ("gva", "gfn", "pages", "writable", "executable")
    GVA_FIELD_NUMBER: _ClassVar[int]
    GFN_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    gva: int
    gfn: int
    pages: int
    writable: bool
    executable: bool
    def __init__(self, gva: _Optional[int] = ..., gfn: _Optional[int] = ..., pages: _Optional[int] = ..., writable: _Optional[bool] = ..., executable: _Optional[bool] = ...) -> None: ...
