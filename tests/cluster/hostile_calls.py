"""A hostile client of every socket of a running cluster: what it sends is wrong by construction, or only looks.

``python hostile_calls.py FILES SCENARIO_DIGEST NUMBER [alone]``: so many inputs made by Hypothesis, then, with
``alone``, how long a stream lives that is opened and left. Prints as JSON how many calls ended with which status. A
process of its own, for who forks a cluster must not import gRPC. An answer that means a bug of ours (UNKNOWN, INTERNAL,
UNAVAILABLE) ends it with the input that did it.

Nothing here may change the run, so what is valid is left out: a Shutdown, and a Kill, Spawn or access of the one process
there is. Its number is 1 and its name is known; requests that happen to mean it are dropped. So are I/O failures that
make sense, where an operator would be heard.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from apf import limits, roles, wire
from apf.io_faults import IoFaultName, IoName
from apf.v1 import guest_pb2, host_pb2, load_pb2, types_pb2

CALL_S = 20.0
SOCKETS = (
    ("vcpu", "hostd"),
    ("guest", "hostd"),
    ("operator", "hostd"),
    ("vcpu", "guestsched-0"),
    ("load", "guestsched-0"),
    ("operator", "guestsched-0"),
    ("load", "hostd"),
)
BUGS = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
LOOKING = {"List", "WatchCounters", "GetProfile", "GetMemory", "Check", "Watch", "ServerReflectionInfo", "Wait"}
"""Methods that may answer OK: they change nothing."""

u64 = st.integers(0, 2**64 - 1) | st.integers(0, 8)
u32 = st.integers(0, 2**32 - 1) | st.integers(0, 8)
enums = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 4)
small = st.binary(max_size=200)


def built(make: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: make(**chosen))


def attaches(digest: str) -> st.SearchStrategy[Any]:
    """Of another run, of a VM or vCPU that is not there, or of one that is attached already."""
    return built(types_pb2.Attach, vm=u32, vcpu=u32, scenario_digest=st.text(max_size=40) | st.just(digest))


faults = built(host_pb2.FaultRaised, gfn=u64, access=enums, mode=enums, work=u32)
prefaults = built(host_pb2.PrefaultRaised, gfn=u64, work=u32)
stamps = built(host_pb2.Stamp, offset=u32, base=u64, stride=u64)
segments = built(
    host_pb2.Segment, gfn=u64, pages=u64, data=small, stamps=st.lists(stamps, max_size=3), demand_zero=st.booleans()
)
places = {"process": st.integers(2, 2**32 - 1) | st.just(0), "process_name": st.text(max_size=70)}
accesses = built(load_pb2.AccessRequest, **places, page=u64, kind=enums, length=u32)
spawns = built(  # without a program or with memory that is no multiple of pages: never a process
    load_pb2.SpawnRequest,
    name=st.text(max_size=80),
    program=st.text(max_size=70).map(lambda text: text + "!"),
    elf=small,
    threads=u32,
    access_threads=u32,
    memory=u64.map(lambda size: size | 1),
    nice=enums,
    vcpus=st.lists(u32, max_size=5),
    parameters=st.dictionaries(st.text(max_size=9), u64, max_size=3),
    lifetime_ns=u64,
).map(
    lambda spawn: spawn if spawn.memory else load_pb2.SpawnRequest(name=spawn.name, program=spawn.program, memory=1)
)


io_faults = built(
    host_pb2.InjectIoFaultRequest,
    what=st.sampled_from(get_args(IoFaultName)) | st.text(max_size=20),
    nth=u64,
    count=u64,
    vm=u32,
    gfn=u64,
    slot=u64,
    for_ns=u64,
    io=st.sampled_from(get_args(IoName)) | st.text(max_size=9),
    factor=u64,
    add_ns=u64,
)


def messages(digest: str) -> dict[str, st.SearchStrategy[Any]]:
    """Structured requests by method."""
    attach = attaches(digest)
    ids = {"time_ns": u64, "seq": u64}
    host = st.one_of(
        built(host_pb2.RunVcpuRequest, **ids, attach=attach),
        built(host_pb2.RunVcpuRequest, **ids, fault=faults),
        built(host_pb2.RunVcpuRequest, **ids, prefault=prefaults),
    )
    guest = st.one_of(
        built(guest_pb2.TakeTrapsRequest, **ids, registers=small, attach=attach),
        built(guest_pb2.TakeTrapsRequest, **ids, registers=small, syscall=built(guest_pb2.SyscallRaised, data=small)),
        built(guest_pb2.TakeTrapsRequest, **ids, stopped=st.just(guest_pb2.Stopped())),
        built(guest_pb2.TakeTrapsRequest, **ids, samples=st.lists(built(guest_pb2.Sample, path=u32), max_size=3)),
    )
    item = built(load_pb2.AccessStreamRequest.Item, id=u64, access=accesses)
    trace = built(load_pb2.ReplayRequest.Item, page=u64, write=st.booleans(), think=u32)
    return {
        "/apf.v1.HostService/RunVcpu": host,
        "/apf.v1.HostService/LoadVm": built(host_pb2.LoadVmRequest, vm=u32, segments=st.lists(segments, max_size=4)),
        "/apf.v1.HostService/InjectIoFault": io_faults,
        "/apf.v1.HostService/GetMemory": built(host_pb2.GetMemoryRequest, vm=u32),
        "/apf.v1.GuestService/TakeTraps": guest,
        "/apf.v1.LoadService/Access": accesses,
        "/apf.v1.LoadService/AccessStream": built(load_pb2.AccessStreamRequest, items=st.lists(item, max_size=70)),
        "/apf.v1.LoadService/Replay": built(load_pb2.ReplayRequest, **places, items=st.lists(trace, max_size=20)),
        "/apf.v1.LoadService/Spawn": spawns,
        "/apf.v1.LoadService/Kill": built(load_pb2.KillRequest, **places, task=u32),
        "/apf.v1.LoadService/Wait": built(load_pb2.WaitRequest, **places),
        "/apf.v1.LoadService/WatchCounters": built(load_pb2.WatchCountersRequest, interval_ms=u32, count=st.just(1)),
    }


_MEANT = {
    "Access": load_pb2.AccessRequest,
    "Replay": load_pb2.ReplayRequest,
    "Kill": load_pb2.KillRequest,
    "Wait": load_pb2.WaitRequest,
}


def is_valid(method: str, data: bytes) -> bool:
    """Whether ``data`` might be taken for a request that changes the run."""
    name = method.rpartition("/")[2]
    if name == "Shutdown":
        return True
    try:
        if name == "AccessStream":
            meant = [item.access for item in load_pb2.AccessStreamRequest.FromString(data).items]
        elif name in _MEANT:
            meant = [_MEANT[name].FromString(data)]
        elif name == "InjectIoFault":
            wire.io_fault_in(host_pb2.InjectIoFaultRequest.FromString(data))
            return True
        elif name == "Spawn":
            return bool(load_pb2.SpawnRequest.FromString(data).access_threads)
        else:
            return False
    except Exception:  # what does not parse here, or makes no sense, does not there either
        return False
    return any(request.process == 1 or request.process_name == "bench" for request in meant)


class Over(BaseException):
    """The run has ended, and its sockets with it. No Exception: Hypothesis is not to look into it."""


class Hostile:
    """Channels to all sockets, and what became of the calls."""

    def __init__(self, files: Path) -> None:
        self.paths = {each: files / each[0] / f"{each[1]}.sock" for each in SOCKETS}
        options = (("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20))
        self.channels = {each: grpc.insecure_channel(f"unix:{path}", options) for each, path in self.paths.items()}
        self.seen: Counter[str] = Counter()

    def call(self, where: tuple[str, str], method: str, data: list[bytes], how: str) -> None:
        """One stream, whatever the method's own kind is."""
        if any(is_valid(method, each) for each in data) and roles.may([roles.Role(where[0])], method):
            self.seen["dropped"] += 1
            return
        name = method.rpartition("/")[2]
        metadata = (("x", "y" * 20_000),) if how == "metadata" else ()
        multi = self.channels[where].stream_stream(method)
        if how == "huge":
            data = [bytes(limits.request_bytes_max(method) + 1)]
        call = multi(iter(data), timeout=0.02 if how == "late" else CALL_S, metadata=metadata)
        if how == "cancel":
            call.cancel()
        try:
            next(call)
            status = "OK"
            call.cancel()
        except StopIteration:
            status = "OK"
        except grpc.RpcError as error:
            status = error.code().name
            details = error.details() or ""
            if not self.paths[where].exists():
                raise Over from None
            assert status not in BUGS, (where, method, data, how, status, details)
            assert len(details) <= limits.DETAILS_CHARS_MAX, (where, method, len(details))
        may = roles.may([roles.Role(where[0])], method)
        if not may and method in roles.METHODS and how in {"whole", "huge"}:
            assert status == "PERMISSION_DENIED", (where, method, data, status)
        if status == "OK" and may and how != "cancel":
            told = name in LOOKING or name == "AccessStream" or not data
            assert told, (where, method, data, status)
        self.seen[status] += 1

    def garbage(self, where: tuple[str, str], data: bytes, preface: bool) -> None:
        """Bytes that are no HTTP/2, or stop being it after the preface."""
        with socket.socket(socket.AF_UNIX) as raw:
            try:
                raw.connect(str(self.paths[where]))
            except FileNotFoundError:
                raise Over from None
            with contextlib.suppress(BrokenPipeError):
                raw.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if preface else b"") + data)
        self.seen["garbage"] += 1

    def left_alone(self) -> dict[str, float]:
        """How long a stream lives that is opened and left, by method."""
        calls = {}
        for where, method in (
            (SOCKETS[0], "/apf.v1.HostService/RunVcpu"),
            (SOCKETS[1], "/apf.v1.HostService/LoadVm"),
            (SOCKETS[2], "/apf.v1.HostService/InjectIoFault"),
            (SOCKETS[3], "/apf.v1.GuestService/TakeTraps"),
            (SOCKETS[4], "/apf.v1.LoadService/AccessStream"),
            (SOCKETS[5], "/apf.v1.LoadService/Kill"),
        ):
            calls[method] = self.channels[where].stream_stream(method)(_never(), timeout=limits.FIRST_MESSAGE_S + 20)
        began_s, lived = time.monotonic(), {}
        for method, call in calls.items():
            assert call.code().name == "DEADLINE_EXCEEDED" and "no first message" in call.details(), method
            lived[method] = time.monotonic() - began_s
        return lived


def _never() -> Any:
    time.sleep(limits.FIRST_MESSAGE_S + 10)
    yield b""


def main() -> None:
    files, digest, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    hostile = Hostile(files)
    structured = messages(digest)
    methods = st.sampled_from([*roles.METHODS, "/apf.v1.HostService/Other", "/", "/x/y"])
    raw = st.lists(st.binary(max_size=300), max_size=3)

    @st.composite
    def inputs(draw: st.DrawFn) -> tuple[str, list[bytes]]:
        if draw(st.booleans()):
            method = draw(st.sampled_from(sorted(structured)))
            return method, [each.SerializeToString() for each in draw(st.lists(structured[method], max_size=3))]
        return draw(methods), draw(raw)

    hows = st.sampled_from(["whole"] * 12 + ["cancel", "cancel", "late", "metadata", "huge"])

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(where=st.sampled_from(SOCKETS), chosen=inputs(), how=hows, noise=st.none() | st.binary(max_size=400))
    def attack(where: tuple[str, str], chosen: tuple[str, list[bytes]], how: str, noise: bytes | None) -> None:
        hostile.call(where, *chosen, how)
        if noise is not None and len(noise) % 8 == 0:
            hostile.garbage(where, noise, preface=bool(len(noise) % 16))

    began_s, over = time.monotonic(), False
    try:
        attack()
    except Over:
        over = True
    lived = hostile.left_alone() if len(sys.argv) > 4 else {}
    print(json.dumps({"seen": dict(hostile.seen), "lived": lived, "over": over, "s": time.monotonic() - began_s}))


if __name__ == "__main__":
    main()
