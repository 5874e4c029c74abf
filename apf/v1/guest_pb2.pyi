from apf.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TakeTrapsRequest(_message.Message):
    __slots__ = ("time_ns", "seq", "registers", "attach", "booted", "tick", "not_present", "page_ready", "syscall", "exception", "stopped", "timer", "interrupt", "fetched", "run_failed", "min_flt", "maj_flt", "faults", "samples", "kernel")
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
    TIMER_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    RUN_FAILED_FIELD_NUMBER: _ClassVar[int]
    MIN_FLT_FIELD_NUMBER: _ClassVar[int]
    MAJ_FLT_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
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
    timer: TimerArrived
    interrupt: InterruptArrived
    fetched: Fetched
    run_failed: RunFailed
    min_flt: int
    maj_flt: int
    faults: _containers.RepeatedCompositeFieldContainer[FaultMet]
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    kernel: bool
    def __init__(self, time_ns: _Optional[int] = ..., seq: _Optional[int] = ..., registers: _Optional[bytes] = ..., attach: _Optional[_Union[_types_pb2.Attach, _Mapping]] = ..., booted: _Optional[_Union[Booted, _Mapping]] = ..., tick: _Optional[_Union[TickArrived, _Mapping]] = ..., not_present: _Optional[_Union[NotPresentArrived, _Mapping]] = ..., page_ready: _Optional[_Union[PageReadyArrived, _Mapping]] = ..., syscall: _Optional[_Union[SyscallRaised, _Mapping]] = ..., exception: _Optional[_Union[ExceptionRaised, _Mapping]] = ..., stopped: _Optional[_Union[Stopped, _Mapping]] = ..., timer: _Optional[_Union[TimerArrived, _Mapping]] = ..., interrupt: _Optional[_Union[InterruptArrived, _Mapping]] = ..., fetched: _Optional[_Union[Fetched, _Mapping]] = ..., run_failed: _Optional[_Union[RunFailed, _Mapping]] = ..., min_flt: _Optional[int] = ..., maj_flt: _Optional[int] = ..., faults: _Optional[_Iterable[_Union[FaultMet, _Mapping]]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., kernel: _Optional[bool] = ...) -> None: ...

class FaultMet(_message.Message):
    __slots__ = ("gfn", "kind")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[FaultMet.Kind]
        KIND_MINOR: _ClassVar[FaultMet.Kind]
        KIND_MAJOR: _ClassVar[FaultMet.Kind]
        KIND_ASYNC: _ClassVar[FaultMet.Kind]
    KIND_UNSPECIFIED: FaultMet.Kind
    KIND_MINOR: FaultMet.Kind
    KIND_MAJOR: FaultMet.Kind
    KIND_ASYNC: FaultMet.Kind
    GFN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    gfn: int
    kind: FaultMet.Kind
    def __init__(self, gfn: _Optional[int] = ..., kind: _Optional[_Union[FaultMet.Kind, str]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("task", "rip", "path", "count")
    TASK_FIELD_NUMBER: _ClassVar[int]
    RIP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    task: int
    rip: int
    path: int
    count: int
    def __init__(self, task: _Optional[int] = ..., rip: _Optional[int] = ..., path: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("token", "failed")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    token: int
    failed: bool
    def __init__(self, token: _Optional[int] = ..., failed: _Optional[bool] = ...) -> None: ...

class SyscallRaised(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ExceptionRaised(_message.Message):
    __slots__ = ("vector", "address", "rip")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RIP_FIELD_NUMBER: _ClassVar[int]
    vector: int
    address: int
    rip: int
    def __init__(self, vector: _Optional[int] = ..., address: _Optional[int] = ..., rip: _Optional[int] = ...) -> None: ...

class RunFailed(_message.Message):
    __slots__ = ("gfn", "error")
    GFN_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    gfn: int
    error: _types_pb2.PageError
    def __init__(self, gfn: _Optional[int] = ..., error: _Optional[_Union[_types_pb2.PageError, str]] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TimerArrived(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InterruptArrived(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Fetched(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("task", "asid", "account", "registers", "run_until_ns", "apf_ns", "spaces", "steps", "timer_ns", "copies", "fetch", "log_faults", "shutdown", "syscall_fetch", "injections")
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
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TIMER_NS_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    LOG_FAULTS_FIELD_NUMBER: _ClassVar[int]
    SHUTDOWN_FIELD_NUMBER: _ClassVar[int]
    SYSCALL_FETCH_FIELD_NUMBER: _ClassVar[int]
    INJECTIONS_FIELD_NUMBER: _ClassVar[int]
    task: int
    asid: int
    account: Dispatch.Account
    registers: bytes
    run_until_ns: int
    apf_ns: int
    spaces: _containers.RepeatedCompositeFieldContainer[AddressSpace]
    steps: _containers.RepeatedCompositeFieldContainer[KernelStep]
    timer_ns: int
    copies: _containers.RepeatedCompositeFieldContainer[Copy]
    fetch: _containers.RepeatedCompositeFieldContainer[Range]
    log_faults: bool
    shutdown: bool
    syscall_fetch: _containers.RepeatedCompositeFieldContainer[Range]
    injections: _containers.RepeatedCompositeFieldContainer[ProtocolFault]
    def __init__(self, task: _Optional[int] = ..., asid: _Optional[int] = ..., account: _Optional[_Union[Dispatch.Account, str]] = ..., registers: _Optional[bytes] = ..., run_until_ns: _Optional[int] = ..., apf_ns: _Optional[int] = ..., spaces: _Optional[_Iterable[_Union[AddressSpace, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[KernelStep, _Mapping]]] = ..., timer_ns: _Optional[int] = ..., copies: _Optional[_Iterable[_Union[Copy, _Mapping]]] = ..., fetch: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., log_faults: _Optional[bool] = ..., shutdown: _Optional[bool] = ..., syscall_fetch: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., injections: _Optional[_Iterable[_Union[ProtocolFault, _Mapping]]] = ...) -> None: ...

class ProtocolFault(_message.Message):
    __slots__ = ("what", "nth", "count", "for_ns")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    NTH_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FOR_NS_FIELD_NUMBER: _ClassVar[int]
    what: str
    nth: int
    count: int
    for_ns: int
    def __init__(self, what: _Optional[str] = ..., nth: _Optional[int] = ..., count: _Optional[int] = ..., for_ns: _Optional[int] = ...) -> None: ...

class KernelStep(_message.Message):
    __slots__ = ("wrmsr", "store")
    WRMSR_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    wrmsr: MsrWrite
    store: Copy
    def __init__(self, wrmsr: _Optional[_Union[MsrWrite, _Mapping]] = ..., store: _Optional[_Union[Copy, _Mapping]] = ...) -> None: ...

class MsrWrite(_message.Message):
    __slots__ = ("msr", "value")
    MSR_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    msr: int
    value: int
    def __init__(self, msr: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("gpa", "data")
    GPA_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    gpa: int
    data: bytes
    def __init__(self, gpa: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("gpa", "length")
    GPA_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    gpa: int
    length: int
    def __init__(self, gpa: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

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
