from apf.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunVcpuRequest(_message.Message):
    __slots__ = ("time_ns", "seq", "attach", "fault", "prefault")
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    PREFAULT_FIELD_NUMBER: _ClassVar[int]
    time_ns: int
    seq: int
    attach: _types_pb2.Attach
    fault: FaultRaised
    prefault: PrefaultRaised
    def __init__(self, time_ns: _Optional[int] = ..., seq: _Optional[int] = ..., attach: _Optional[_Union[_types_pb2.Attach, _Mapping]] = ..., fault: _Optional[_Union[FaultRaised, _Mapping]] = ..., prefault: _Optional[_Union[PrefaultRaised, _Mapping]] = ...) -> None: ...

class RunVcpuResponse(_message.Message):
    __slots__ = ("seq", "at_ns", "attached", "mapped", "retry", "in_progress", "failed")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    MAPPED_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    IN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    at_ns: int
    attached: _types_pb2.Attached
    mapped: Mapped
    retry: Retry
    in_progress: InProgress
    failed: Failed
    def __init__(self, seq: _Optional[int] = ..., at_ns: _Optional[int] = ..., attached: _Optional[_Union[_types_pb2.Attached, _Mapping]] = ..., mapped: _Optional[_Union[Mapped, _Mapping]] = ..., retry: _Optional[_Union[Retry, _Mapping]] = ..., in_progress: _Optional[_Union[InProgress, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ...) -> None: ...

class FaultRaised(_message.Message):
    __slots__ = ("gfn", "access", "mode", "work", "forgotten")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[FaultRaised.Mode]
        MODE_BLOCKING: _ClassVar[FaultRaised.Mode]
        MODE_NOWAIT: _ClassVar[FaultRaised.Mode]
    MODE_UNSPECIFIED: FaultRaised.Mode
    MODE_BLOCKING: FaultRaised.Mode
    MODE_NOWAIT: FaultRaised.Mode
    GFN_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    gfn: int
    access: _types_pb2.Access
    mode: FaultRaised.Mode
    work: int
    forgotten: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, gfn: _Optional[int] = ..., access: _Optional[_Union[_types_pb2.Access, str]] = ..., mode: _Optional[_Union[FaultRaised.Mode, str]] = ..., work: _Optional[int] = ..., forgotten: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefaultRaised(_message.Message):
    __slots__ = ("gfn", "work")
    GFN_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    gfn: int
    work: int
    def __init__(self, gfn: _Optional[int] = ..., work: _Optional[int] = ...) -> None: ...

class Mapped(_message.Message):
    __slots__ = ("gfn", "pfn", "writable", "kind", "stall_ns")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Mapped.Kind]
        KIND_MINOR: _ClassVar[Mapped.Kind]
        KIND_MAJOR: _ClassVar[Mapped.Kind]
    KIND_UNSPECIFIED: Mapped.Kind
    KIND_MINOR: Mapped.Kind
    KIND_MAJOR: Mapped.Kind
    GFN_FIELD_NUMBER: _ClassVar[int]
    PFN_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STALL_NS_FIELD_NUMBER: _ClassVar[int]
    gfn: int
    pfn: int
    writable: bool
    kind: Mapped.Kind
    stall_ns: int
    def __init__(self, gfn: _Optional[int] = ..., pfn: _Optional[int] = ..., writable: _Optional[bool] = ..., kind: _Optional[_Union[Mapped.Kind, str]] = ..., stall_ns: _Optional[int] = ...) -> None: ...

class Retry(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InProgress(_message.Message):
    __slots__ = ("work", "ready_at_ns")
    WORK_FIELD_NUMBER: _ClassVar[int]
    READY_AT_NS_FIELD_NUMBER: _ClassVar[int]
    work: int
    ready_at_ns: int
    def __init__(self, work: _Optional[int] = ..., ready_at_ns: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("gfn", "error", "stall_ns")
    GFN_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STALL_NS_FIELD_NUMBER: _ClassVar[int]
    gfn: int
    error: _types_pb2.PageError
    stall_ns: int
    def __init__(self, gfn: _Optional[int] = ..., error: _Optional[_Union[_types_pb2.PageError, str]] = ..., stall_ns: _Optional[int] = ...) -> None: ...

class LoadVmRequest(_message.Message):
    __slots__ = ("vm", "segments")
    VM_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    vm: int
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, vm: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("gfn", "pages", "data", "stamps", "demand_zero", "read_only")
    GFN_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STAMPS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_ZERO_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    gfn: int
    pages: int
    data: bytes
    stamps: _containers.RepeatedCompositeFieldContainer[Stamp]
    demand_zero: bool
    read_only: bool
    def __init__(self, gfn: _Optional[int] = ..., pages: _Optional[int] = ..., data: _Optional[bytes] = ..., stamps: _Optional[_Iterable[_Union[Stamp, _Mapping]]] = ..., demand_zero: _Optional[bool] = ..., read_only: _Optional[bool] = ...) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("offset", "base", "stride")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    base: int
    stride: int
    def __init__(self, offset: _Optional[int] = ..., base: _Optional[int] = ..., stride: _Optional[int] = ...) -> None: ...

class InjectIoFaultRequest(_message.Message):
    __slots__ = ("what", "nth", "count", "vm", "gfn", "slot", "for_ns", "io", "factor", "add_ns")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    NTH_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    VM_FIELD_NUMBER: _ClassVar[int]
    GFN_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    FOR_NS_FIELD_NUMBER: _ClassVar[int]
    IO_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    ADD_NS_FIELD_NUMBER: _ClassVar[int]
    what: str
    nth: int
    count: int
    vm: int
    gfn: int
    slot: int
    for_ns: int
    io: str
    factor: int
    add_ns: int
    def __init__(self, what: _Optional[str] = ..., nth: _Optional[int] = ..., count: _Optional[int] = ..., vm: _Optional[int] = ..., gfn: _Optional[int] = ..., slot: _Optional[int] = ..., for_ns: _Optional[int] = ..., io: _Optional[str] = ..., factor: _Optional[int] = ..., add_ns: _Optional[int] = ...) -> None: ...

class InjectIoFaultResponse(_message.Message):
    __slots__ = ("at_ns",)
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    at_ns: int
    def __init__(self, at_ns: _Optional[int] = ...) -> None: ...

class GetMemoryRequest(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: int
    def __init__(self, vm: _Optional[int] = ...) -> None: ...

class GetMemoryResponse(_message.Message):
    __slots__ = ("now_ns", "group", "vmstat", "root_pressure")
    class VmstatEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    VMSTAT_FIELD_NUMBER: _ClassVar[int]
    ROOT_PRESSURE_FIELD_NUMBER: _ClassVar[int]
    now_ns: int
    group: MemoryGroup
    vmstat: _containers.ScalarMap[str, int]
    root_pressure: Pressure
    def __init__(self, now_ns: _Optional[int] = ..., group: _Optional[_Union[MemoryGroup, _Mapping]] = ..., vmstat: _Optional[_Mapping[str, int]] = ..., root_pressure: _Optional[_Union[Pressure, _Mapping]] = ...) -> None: ...

class MemoryGroup(_message.Message):
    __slots__ = ("current", "high", "max", "swap_current", "stat", "events", "pressure")
    class StatEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class EventsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    SWAP_CURRENT_FIELD_NUMBER: _ClassVar[int]
    STAT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    current: int
    high: int
    max: int
    swap_current: int
    stat: _containers.ScalarMap[str, int]
    events: _containers.ScalarMap[str, int]
    pressure: Pressure
    def __init__(self, current: _Optional[int] = ..., high: _Optional[int] = ..., max: _Optional[int] = ..., swap_current: _Optional[int] = ..., stat: _Optional[_Mapping[str, int]] = ..., events: _Optional[_Mapping[str, int]] = ..., pressure: _Optional[_Union[Pressure, _Mapping]] = ...) -> None: ...

class Pressure(_message.Message):
    __slots__ = ("some", "full")
    SOME_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    some: PressureLine
    full: PressureLine
    def __init__(self, some: _Optional[_Union[PressureLine, _Mapping]] = ..., full: _Optional[_Union[PressureLine, _Mapping]] = ...) -> None: ...

class PressureLine(_message.Message):
    __slots__ = ("avg10", "avg60", "avg300", "total_us")
    AVG10_FIELD_NUMBER: _ClassVar[int]
    AVG60_FIELD_NUMBER: _ClassVar[int]
    AVG300_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    avg10: float
    avg60: float
    avg300: float
    total_us: int
    def __init__(self, avg10: _Optional[float] = ..., avg60: _Optional[float] = ..., avg300: _Optional[float] = ..., total_us: _Optional[int] = ...) -> None: ...

class LoadVmResponse(_message.Message):
    __slots__ = ("resident_pages", "swapped_pages", "start_ns")
    RESIDENT_PAGES_FIELD_NUMBER: _ClassVar[int]
    SWAPPED_PAGES_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    resident_pages: int
    swapped_pages: int
    start_ns: int
    def __init__(self, resident_pages: _Optional[int] = ..., swapped_pages: _Optional[int] = ..., start_ns: _Optional[int] = ...) -> None: ...
