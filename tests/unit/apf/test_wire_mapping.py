"""Every message survives the wire; what no correct peer sends is refused with the field's name."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf import messages as m
from apf import registers as register_file
from apf import wire
from apf.io_faults import IoFaultWish
from apf.protocol_faults import InjectName
from apf.v1 import guest_pb2, host_pb2

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
GUEST_PAGES = 1 << 40
gfns = st.integers(0, GUEST_PAGES - 1)
register_files = st.one_of(st.none(), st.binary(min_size=register_file.FILE_BYTES, max_size=register_file.FILE_BYTES))

faults = st.one_of(
    st.builds(m.FaultRaised, gfns, st.sampled_from(m.Access), st.just(m.FaultMode.BLOCKING)),
    st.builds(m.FaultRaised, gfns, st.sampled_from(m.Access), st.just(m.FaultMode.NOWAIT), u32.filter(bool)),
)
requests = st.one_of(faults, st.builds(m.PrefaultRaised, gfns, u32))
kinds = st.sampled_from([m.FaultKind.MINOR, m.FaultKind.MAJOR])
replies = st.one_of(
    st.builds(m.Mapped, u64, u64, u64, st.booleans(), kinds, u64),
    st.builds(m.Retry, u64),
    st.builds(m.InProgress, u64, u32, u64),
    st.builds(m.Failed, u64, u64, st.sampled_from(m.PageError), u64),
)
traps = st.builds(
    m.TrapRaised,
    st.one_of(
        st.sampled_from([m.Booted(), m.TickArrived(), m.SyscallRaised(), m.Stopped()]),
        st.builds(m.NotPresentArrived, u32),
        st.builds(m.PageReadyArrived, u32, st.booleans()),
        st.builds(m.RunFailed, u64, st.sampled_from(m.PageError)),
        st.builds(m.ExceptionRaised, u32, u64, u64),
    ),
    register_files,
)
extents = st.builds(m.Extent, u64, u64, u64, st.booleans(), st.booleans())
spaces = st.builds(m.AddressSpace, u32, st.lists(extents, max_size=3).map(tuple))
protocol_faults = st.builds(m.ProtocolFault, st.sampled_from(get_args(InjectName)), nth=u64, count=u64, for_ns=u64)
dispatches = st.builds(
    m.Dispatch,
    at_ns=u64,
    task=u32,
    asid=u32,
    account=st.sampled_from(m.Account),
    registers=register_files,
    run_until_ns=u64,
    apf_ns=u64,
    spaces=st.lists(spaces, max_size=3).map(tuple),
    injections=st.lists(protocol_faults, max_size=3).map(tuple),
    steps=st.lists(
        st.one_of(
            st.builds(m.MsrWrite, msr=st.integers(0, (1 << 32) - 1), value=u64),
            st.builds(m.Store, gpa=u64, data=st.binary(min_size=1, max_size=16)),
        ),
        max_size=3,
    ).map(tuple),
)
stamps = st.builds(m.Stamp, st.integers(0, (m.PAGE_SIZE - 24) // 8).map(lambda word: word * 8), u64, u64)
segments = st.builds(
    m.Segment, st.integers(0, 1000), st.integers(1, 24), st.binary(max_size=m.PAGE_SIZE), st.lists(stamps).map(tuple)
)


def parsed(message: Any) -> Any:
    """As the other side gets it."""
    return type(message).FromString(message.SerializeToString())


@given(request=requests, time_ns=u64, seq=u64)
def test_host_requests(request: m.HostRequest, time_ns: int, seq: int) -> None:
    message = parsed(wire.host_request_out(request, time_ns, seq))
    assert wire.host_request_in(message, GUEST_PAGES) == request
    assert (message.time_ns, message.seq) == (time_ns, seq)


@given(reply=replies, seq=u64)
def test_host_replies(reply: m.HostReply, seq: int) -> None:
    message = parsed(wire.host_reply_out(reply, seq))
    assert wire.host_reply_in(message) == reply
    assert message.seq == seq


@given(raised=traps, time_ns=u64, seq=u64)
def test_traps(raised: m.TrapRaised, time_ns: int, seq: int) -> None:
    message = parsed(wire.trap_out(raised, time_ns, seq))
    assert wire.trap_in(message) == raised
    assert (message.time_ns, message.seq) == (time_ns, seq)


@given(dispatch=dispatches, seq=u64)
def test_dispatches(dispatch: m.Dispatch, seq: int) -> None:
    message = parsed(wire.dispatch_out(dispatch, seq))
    assert wire.dispatch_in(message) == dispatch
    assert message.seq == seq


@given(vm=u32, loaded=st.lists(segments, max_size=4))
def test_segments(vm: int, loaded: list[m.Segment]) -> None:
    message = parsed(wire.segments_out(vm, loaded))
    assert wire.segments_in(message, 1024) == loaded
    assert message.vm == vm


def fault(**fields: Any) -> host_pb2.RunVcpuRequest:
    """A right fault with some fields changed."""
    right = {"gfn": 1, "access": 1, "mode": 1, "work": 0}
    return host_pb2.RunVcpuRequest(fault=host_pb2.FaultRaised(**{**right, **fields}))


def segment(**fields: Any) -> host_pb2.LoadVmRequest:
    return host_pb2.LoadVmRequest(segments=[host_pb2.Segment(**{"gfn": 0, "pages": 1, **fields})])


def test_the_right_fault_is_right() -> None:
    assert isinstance(wire.host_request_in(fault(), 10), m.FaultRaised)
    assert wire.segments_in(segment(), 10) == [m.Segment(0, 1)]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (host_pb2.RunVcpuRequest(), "request"),
        (fault(access=0), "fault.access = 0"),
        (fault(access=77), "fault.access = 77"),
        (fault(mode=0), "fault.mode = 0"),
        (fault(mode=1, work=5), "fault.work = 5"),
        (fault(mode=2, work=0), "fault.work = 0"),
        (fault(gfn=10), "gfn = 10: the VM has pages 0 to 9"),
        (host_pb2.RunVcpuRequest(prefault=host_pb2.PrefaultRaised(gfn=11, work=1)), "gfn = 11"),
    ],
)
def test_bad_host_requests(message: host_pb2.RunVcpuRequest, field: str) -> None:
    with pytest.raises(wire.WireError, match=f"^{field}"):
        wire.host_request_in(message, 10)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (segment(pages=0), r"segments\[0\]: pages"),
        (segment(pages=11), r"segments\[0\]: pages"),
        (segment(gfn=10), r"segments\[0\]: pages"),
        (segment(gfn=1 << 63), r"segments\[0\]: pages"),
        (segment(data=b"x" * 4097), r"segments\[0\]\.data"),
        (segment(stamps=[host_pb2.Stamp(offset=4)]), r"segments\[0\]\.stamps\.offset = 4"),
        (segment(stamps=[host_pb2.Stamp(offset=4080)]), r"segments\[0\]\.stamps\.offset = 4080"),
    ],
)
def test_bad_segments(message: host_pb2.LoadVmRequest, field: str) -> None:
    with pytest.raises(wire.WireError, match=f"^{field}"):
        wire.segments_in(message, 10)


@pytest.mark.parametrize(
    ("read", "message", "field"),
    [
        (wire.host_reply_in, host_pb2.RunVcpuResponse(), "reply"),
        (wire.host_reply_in, host_pb2.RunVcpuResponse(mapped=host_pb2.Mapped()), "mapped.kind = 0"),
        (wire.host_reply_in, host_pb2.RunVcpuResponse(failed=host_pb2.Failed(gfn=1)), "failed.error = 0"),
        (
            wire.trap_in,
            guest_pb2.TakeTrapsRequest(run_failed=guest_pb2.RunFailed(gfn=1, error=9)),
            "run_failed.error = 9",
        ),
        (wire.io_fault_in, host_pb2.InjectIoFaultRequest(), "what = '': "),
        (wire.io_fault_in, host_pb2.InjectIoFaultRequest(what="read_error", nth=0), "nth = 0: "),
        (wire.io_fault_in, host_pb2.InjectIoFaultRequest(what="stop", gfn=4), "gfn = 4: stop is of the whole device"),
        (wire.io_fault_in, host_pb2.InjectIoFaultRequest(what="slow"), "factor = 1, add_ns = 0: slow needs"),
        (
            wire.io_fault_in,
            host_pb2.InjectIoFaultRequest(what="lost_write", for_ns=1),
            "for_ns = 1: slow, stop, swap_full",
        ),
        (
            wire.io_fault_in,
            host_pb2.InjectIoFaultRequest(what="stop", factor=2),
            "factor = 2, add_ns = 0, io = 'any'",
        ),
        (wire.trap_in, guest_pb2.TakeTrapsRequest(), "trap"),
        (wire.trap_in, guest_pb2.TakeTrapsRequest(registers=b"123"), "registers: 3 bytes"),
        (wire.dispatch_in, guest_pb2.TakeTrapsResponse(), "reply"),
        (wire.dispatch_in, guest_pb2.TakeTrapsResponse(dispatch=guest_pb2.Dispatch()), "dispatch.account = 0"),
        (
            wire.dispatch_in,
            guest_pb2.TakeTrapsResponse(
                dispatch=guest_pb2.Dispatch(account=1, injections=[guest_pb2.ProtocolFault(what="int_written")])
            ),
            "injections.what = int_written: allowed: lost_ready, ",
        ),
    ],
)
def test_other_bad_messages(read: Any, message: Any, field: str) -> None:
    with pytest.raises(wire.WireError, match=f"^{field}"):
        read(message)


def test_what_an_operator_leaves_out_is_as_in_a_scenario() -> None:
    wish = wire.io_fault_in(parsed(host_pb2.InjectIoFaultRequest(what="torn_write", slot=0, count=0)))
    assert wish == IoFaultWish(what="torn_write", slot=0, count=0) and (wish.nth, wish.vm, wish.gfn) == (1, -1, -1)
    slow = wire.io_fault_in(parsed(host_pb2.InjectIoFaultRequest(what="slow", io="read", factor=7, for_ns=9)))
    assert slow == IoFaultWish(what="slow", io="read", factor=7, for_ns=9)
