from apf.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AccessRequest(_message.Message):
    __slots__ = ("process", "process_name", "page", "address", "kind", "length")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    process: int
    process_name: str
    page: int
    address: int
    kind: _types_pb2.Access
    length: int
    def __init__(self, process: _Optional[int] = ..., process_name: _Optional[str] = ..., page: _Optional[int] = ..., address: _Optional[int] = ..., kind: _Optional[_Union[_types_pb2.Access, str]] = ..., length: _Optional[int] = ...) -> None: ...

class AccessResponse(_message.Message):
    __slots__ = ("arrived_ns", "latency_ns", "met", "task")
    class Met(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MET_UNSPECIFIED: _ClassVar[AccessResponse.Met]
        MET_HIT: _ClassVar[AccessResponse.Met]
        MET_MINOR: _ClassVar[AccessResponse.Met]
        MET_MAJOR: _ClassVar[AccessResponse.Met]
        MET_ASYNC: _ClassVar[AccessResponse.Met]
    MET_UNSPECIFIED: AccessResponse.Met
    MET_HIT: AccessResponse.Met
    MET_MINOR: AccessResponse.Met
    MET_MAJOR: AccessResponse.Met
    MET_ASYNC: AccessResponse.Met
    ARRIVED_NS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_NS_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    arrived_ns: int
    latency_ns: int
    met: AccessResponse.Met
    task: int
    def __init__(self, arrived_ns: _Optional[int] = ..., latency_ns: _Optional[int] = ..., met: _Optional[_Union[AccessResponse.Met, str]] = ..., task: _Optional[int] = ...) -> None: ...

class AccessStreamRequest(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("id", "access")
        ID_FIELD_NUMBER: _ClassVar[int]
        ACCESS_FIELD_NUMBER: _ClassVar[int]
        id: int
        access: AccessRequest
        def __init__(self, id: _Optional[int] = ..., access: _Optional[_Union[AccessRequest, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[AccessStreamRequest.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[AccessStreamRequest.Item, _Mapping]]] = ...) -> None: ...

class AccessStreamResponse(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("id", "response", "code", "message")
        ID_FIELD_NUMBER: _ClassVar[int]
        RESPONSE_FIELD_NUMBER: _ClassVar[int]
        CODE_FIELD_NUMBER: _ClassVar[int]
        MESSAGE_FIELD_NUMBER: _ClassVar[int]
        id: int
        response: AccessResponse
        code: int
        message: str
        def __init__(self, id: _Optional[int] = ..., response: _Optional[_Union[AccessResponse, _Mapping]] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[AccessStreamResponse.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[AccessStreamResponse.Item, _Mapping]]] = ...) -> None: ...

class ReplayRequest(_message.Message):
    __slots__ = ("process", "process_name", "items")
    class Item(_message.Message):
        __slots__ = ("page", "write", "think")
        PAGE_FIELD_NUMBER: _ClassVar[int]
        WRITE_FIELD_NUMBER: _ClassVar[int]
        THINK_FIELD_NUMBER: _ClassVar[int]
        page: int
        write: bool
        think: int
        def __init__(self, page: _Optional[int] = ..., write: _Optional[bool] = ..., think: _Optional[int] = ...) -> None: ...
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_NAME_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    process: int
    process_name: str
    items: _containers.RepeatedCompositeFieldContainer[ReplayRequest.Item]
    def __init__(self, process: _Optional[int] = ..., process_name: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ReplayRequest.Item, _Mapping]]] = ...) -> None: ...

class ReplayResponse(_message.Message):
    __slots__ = ("arrived_ns", "finished_ns", "met", "task")
    class MetEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ARRIVED_NS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_NS_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    arrived_ns: int
    finished_ns: int
    met: _containers.ScalarMap[str, int]
    task: int
    def __init__(self, arrived_ns: _Optional[int] = ..., finished_ns: _Optional[int] = ..., met: _Optional[_Mapping[str, int]] = ..., task: _Optional[int] = ...) -> None: ...

class SpawnRequest(_message.Message):
    __slots__ = ("name", "program", "elf", "threads", "access_threads", "memory", "nice", "vcpus", "parameters", "lifetime_ns")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    ELF_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    ACCESS_THREADS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    VCPUS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    program: str
    elf: bytes
    threads: int
    access_threads: int
    memory: int
    nice: int
    vcpus: _containers.RepeatedScalarFieldContainer[int]
    parameters: _containers.ScalarMap[str, int]
    lifetime_ns: int
    def __init__(self, name: _Optional[str] = ..., program: _Optional[str] = ..., elf: _Optional[bytes] = ..., threads: _Optional[int] = ..., access_threads: _Optional[int] = ..., memory: _Optional[int] = ..., nice: _Optional[int] = ..., vcpus: _Optional[_Iterable[int]] = ..., parameters: _Optional[_Mapping[str, int]] = ..., lifetime_ns: _Optional[int] = ...) -> None: ...

class SpawnResponse(_message.Message):
    __slots__ = ("process", "tasks", "started_ns")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    process: int
    tasks: _containers.RepeatedScalarFieldContainer[int]
    started_ns: int
    def __init__(self, process: _Optional[int] = ..., tasks: _Optional[_Iterable[int]] = ..., started_ns: _Optional[int] = ...) -> None: ...

class KillRequest(_message.Message):
    __slots__ = ("process", "process_name", "task")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    process: int
    process_name: str
    task: int
    def __init__(self, process: _Optional[int] = ..., process_name: _Optional[str] = ..., task: _Optional[int] = ...) -> None: ...

class KillResponse(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tasks: _Optional[_Iterable[int]] = ...) -> None: ...

class InjectRequest(_message.Message):
    __slots__ = ("what", "vcpu", "nth", "count", "for_ns")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    VCPU_FIELD_NUMBER: _ClassVar[int]
    NTH_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FOR_NS_FIELD_NUMBER: _ClassVar[int]
    what: str
    vcpu: int
    nth: int
    count: int
    for_ns: int
    def __init__(self, what: _Optional[str] = ..., vcpu: _Optional[int] = ..., nth: _Optional[int] = ..., count: _Optional[int] = ..., for_ns: _Optional[int] = ...) -> None: ...

class InjectResponse(_message.Message):
    __slots__ = ("at_ns",)
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    at_ns: int
    def __init__(self, at_ns: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("processes", "now_ns")
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    now_ns: int
    def __init__(self, processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ..., now_ns: _Optional[int] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("process", "name", "address", "pages", "tasks", "queued")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    process: int
    name: str
    address: int
    pages: int
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    queued: int
    def __init__(self, process: _Optional[int] = ..., name: _Optional[str] = ..., address: _Optional[int] = ..., pages: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., queued: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task", "name", "program", "state", "vcpu", "nice", "sum_exec_ns", "nvcsw", "nivcsw", "min_flt", "maj_flt", "counted", "killed", "status")
    TASK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VCPU_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    SUM_EXEC_NS_FIELD_NUMBER: _ClassVar[int]
    NVCSW_FIELD_NUMBER: _ClassVar[int]
    NIVCSW_FIELD_NUMBER: _ClassVar[int]
    MIN_FLT_FIELD_NUMBER: _ClassVar[int]
    MAJ_FLT_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    KILLED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    task: int
    name: str
    program: str
    state: str
    vcpu: int
    nice: int
    sum_exec_ns: int
    nvcsw: int
    nivcsw: int
    min_flt: int
    maj_flt: int
    counted: int
    killed: str
    status: int
    def __init__(self, task: _Optional[int] = ..., name: _Optional[str] = ..., program: _Optional[str] = ..., state: _Optional[str] = ..., vcpu: _Optional[int] = ..., nice: _Optional[int] = ..., sum_exec_ns: _Optional[int] = ..., nvcsw: _Optional[int] = ..., nivcsw: _Optional[int] = ..., min_flt: _Optional[int] = ..., maj_flt: _Optional[int] = ..., counted: _Optional[int] = ..., killed: _Optional[str] = ..., status: _Optional[int] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("process", "process_name")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_NAME_FIELD_NUMBER: _ClassVar[int]
    process: int
    process_name: str
    def __init__(self, process: _Optional[int] = ..., process_name: _Optional[str] = ...) -> None: ...

class WaitResponse(_message.Message):
    __slots__ = ("process",)
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    process: Process
    def __init__(self, process: _Optional[_Union[Process, _Mapping]] = ...) -> None: ...

class WatchCountersRequest(_message.Message):
    __slots__ = ("interval_ms", "count")
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    count: int
    def __init__(self, interval_ms: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class WatchCountersResponse(_message.Message):
    __slots__ = ("now_ns", "counters", "vcpus", "tasks", "latency_ns")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class TasksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class LatencyNsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    VCPUS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_NS_FIELD_NUMBER: _ClassVar[int]
    now_ns: int
    counters: _containers.ScalarMap[str, int]
    vcpus: _containers.RepeatedCompositeFieldContainer[Vcpu]
    tasks: _containers.ScalarMap[str, int]
    latency_ns: _containers.ScalarMap[str, int]
    def __init__(self, now_ns: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ..., vcpus: _Optional[_Iterable[_Union[Vcpu, _Mapping]]] = ..., tasks: _Optional[_Mapping[str, int]] = ..., latency_ns: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Vcpu(_message.Message):
    __slots__ = ("vcpu", "task", "nr_running", "nr_switches", "idle_ns")
    VCPU_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    NR_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NR_SWITCHES_FIELD_NUMBER: _ClassVar[int]
    IDLE_NS_FIELD_NUMBER: _ClassVar[int]
    vcpu: int
    task: int
    nr_running: int
    nr_switches: int
    idle_ns: int
    def __init__(self, vcpu: _Optional[int] = ..., task: _Optional[int] = ..., nr_running: _Optional[int] = ..., nr_switches: _Optional[int] = ..., idle_ns: _Optional[int] = ...) -> None: ...

class GetProfileRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetProfileResponse(_message.Message):
    __slots__ = ("symbols", "samples", "folded")
    class Symbol(_message.Message):
        __slots__ = ("name", "kernel", "program", "samples")
        NAME_FIELD_NUMBER: _ClassVar[int]
        KERNEL_FIELD_NUMBER: _ClassVar[int]
        PROGRAM_FIELD_NUMBER: _ClassVar[int]
        SAMPLES_FIELD_NUMBER: _ClassVar[int]
        name: str
        kernel: bool
        program: str
        samples: int
        def __init__(self, name: _Optional[str] = ..., kernel: _Optional[bool] = ..., program: _Optional[str] = ..., samples: _Optional[int] = ...) -> None: ...
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FOLDED_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedCompositeFieldContainer[GetProfileResponse.Symbol]
    samples: int
    folded: str
    def __init__(self, symbols: _Optional[_Iterable[_Union[GetProfileResponse.Symbol, _Mapping]]] = ..., samples: _Optional[int] = ..., folded: _Optional[str] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShutdownResponse(_message.Message):
    __slots__ = ("now_ns",)
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    now_ns: int
    def __init__(self, now_ns: _Optional[int] = ...) -> None: ...
