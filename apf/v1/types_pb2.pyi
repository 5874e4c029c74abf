from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Access(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCESS_UNSPECIFIED: _ClassVar[Access]
    ACCESS_READ: _ClassVar[Access]
    ACCESS_WRITE: _ClassVar[Access]
    ACCESS_EXEC: _ClassVar[Access]

class PageError(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAGE_ERROR_UNSPECIFIED: _ClassVar[PageError]
    PAGE_ERROR_READ: _ClassVar[PageError]
    PAGE_ERROR_TORN: _ClassVar[PageError]
    PAGE_ERROR_LOST: _ClassVar[PageError]
    PAGE_ERROR_OUT_OF_MEMORY: _ClassVar[PageError]
ACCESS_UNSPECIFIED: Access
ACCESS_READ: Access
ACCESS_WRITE: Access
ACCESS_EXEC: Access
PAGE_ERROR_UNSPECIFIED: PageError
PAGE_ERROR_READ: PageError
PAGE_ERROR_TORN: PageError
PAGE_ERROR_LOST: PageError
PAGE_ERROR_OUT_OF_MEMORY: PageError

class Attach(_message.Message):
    __slots__ = ("vm", "vcpu", "scenario_digest")
    VM_FIELD_NUMBER: _ClassVar[int]
    VCPU_FIELD_NUMBER: _ClassVar[int]
    SCENARIO_DIGEST_FIELD_NUMBER: _ClassVar[int]
    vm: int
    vcpu: int
    scenario_digest: str
    def __init__(self, vm: _Optional[int] = ..., vcpu: _Optional[int] = ..., scenario_digest: _Optional[str] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("start_ns",)
    START_NS_FIELD_NUMBER: _ClassVar[int]
    start_ns: int
    def __init__(self, start_ns: _Optional[int] = ...) -> None: ...
