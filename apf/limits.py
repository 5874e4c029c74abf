"""How much a peer may ask of a server: sizes, numbers and times, in one place.

Every limit is answered with a status (RESOURCE_EXHAUSTED for sizes and numbers, DEADLINE_EXCEEDED for times), and none
of them touches the run. Times here are wall time, as the peers' are; they never reach virtual time. What the guest
itself limits (tasks, queues of accesses, memory) stands with the guest: ``guestsched.core``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from apf.roles import Roles, methods_of

_KIB, _MIB = 1 << 10, 1 << 20

_HOST, _GUEST, _LOAD = "/apf.v1.HostService/", "/apf.v1.GuestService/", "/apf.v1.LoadService/"
_SMALL_BYTES = 64 * _KIB
REQUEST_BYTES_MAX: Mapping[str, int] = MappingProxyType(
    {
        _HOST + "RunVcpu": 4 * _KIB,  # a fault is some twenty bytes
        _HOST + "LoadVm": 64 * _MIB,  # programs and tables of a whole guest
        _GUEST + "TakeTraps": 4 * _MIB,  # registers, and what a system call carries from guest memory
        _LOAD + "AccessStream": 256 * _KIB,  # 64 accesses
        _LOAD + "Replay": 2 * _MIB,  # 65,536 accesses of up to 24 bytes
        _LOAD + "Spawn": 32 * _MIB,  # an ELF program
    }
)
"""Longest request message, by method; all others: 64 KiB."""
RESPONSE_BYTES_MAX = 64 * _MIB
"""Longest message that a client of ours takes."""

METADATA_BYTES_MAX = 8 * _KIB
"""Headers of a call. gRPC refuses more with RESOURCE_EXHAUSTED."""

SPARE_RPCS = 16
"""Calls beside those of the vCPUs that a server of theirs takes at once: it refuses them, one by one, with a reason."""
API_RPCS_MAX = 2048
"""Calls in flight at the API, a listener."""
LOADS_MAX = 16
"""Calls in flight for the guest role: one a VM, and some to refuse."""
CALLS_MAX: Mapping[str, int] = MappingProxyType(
    {
        _LOAD + "WatchCounters": 64,  # each is work every interval
        _LOAD + "GetProfile": 16,
        _HOST + "GetMemory": 16,  # each counts the pages of all VMs
        _LOAD + "Replay": 256,
        _LOAD + "Spawn": 64,  # each takes a thread to read a program
    }
)
"""Calls in flight of one method, a listener; of all others as many as the listener takes."""

REPLAY_ITEMS_MAX = 65_536
"""Accesses of a trace in one message."""
TRACES_ITEMS_MAX = 4_000_000
"""Accesses of all traces that are being told or performed, together: some 100 bytes of memory each."""

FIRST_MESSAGE_S = 20.0
"""A stream that is opened and left without a message is ended then. A vCPU attaches as soon as it is up."""
NEXT_MESSAGE_S: Mapping[str, float] = MappingProxyType({_LOAD + "Replay": 60.0})
"""Longest silence within a stream of requests; of all others it may last, for a guest may have nothing to ask."""
CALL_S: Mapping[str, float] = MappingProxyType(
    {
        _HOST + "LoadVm": 600.0,
        _HOST + "InjectIoFault": 600.0,
        _HOST + "GetMemory": 60.0,
        _LOAD + "Spawn": 600.0,
        _LOAD + "Kill": 600.0,
        _LOAD + "Inject": 600.0,
        _LOAD + "List": 60.0,
        _LOAD + "GetProfile": 60.0,
        _LOAD + "Shutdown": 60.0,
        "/grpc.health.v1.Health/Check": 60.0,
        "/grpc.health.v1.Health/List": 60.0,
    }
)
"""A unary call is ended then if its caller set no earlier deadline. Access and Wait take as long as the guest does."""

DETAILS_CHARS_MAX = 1000
"""Longest text of a status: it travels in a header, and repeats what a peer has sent."""

_IDLE_MS = 300_000
_HANDSHAKE_MS = 10_000
_PING_MS, _PING_ANSWER_MS = 60_000, 60_000

Options = tuple[tuple[str, Any], ...]
"""As gRPC takes them."""


def request_bytes_max(method: str) -> int:
    """Longest request message of a method."""
    return REQUEST_BYTES_MAX.get(method, _SMALL_BYTES)


def server_options(roles: Roles, tcp: bool) -> Options:
    """Options of a server whose peers hold some of ``roles``."""
    options: Options = (
        ("grpc.max_receive_message_length", max(request_bytes_max(method) for method in methods_of(roles))),
        ("grpc.max_send_message_length", RESPONSE_BYTES_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.max_concurrent_streams", rpcs_max(roles, 256)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.so_reuseport", 0),
    )
    if tcp:  # of a peer on this machine the kernel says when it is gone
        options += (("grpc.keepalive_time_ms", _PING_MS), ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS))
    return options


def rpcs_max(roles: Iterable[str], vcpus: int) -> int:
    """Calls in flight that a listener with these roles takes, for so many vCPUs."""
    most = {"vcpu": vcpus + SPARE_RPCS, "guest": LOADS_MAX, "load": API_RPCS_MAX, "operator": API_RPCS_MAX}
    return sum(most[each] for each in roles)


def details(text: str) -> str:
    """``text`` as it may stand in a status."""
    return text if len(text) <= DETAILS_CHARS_MAX else text[: DETAILS_CHARS_MAX - 3] + "..."
