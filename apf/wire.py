"""Protobuf on one side, ``apf.messages`` on the other. Bad input from a peer raises ``WireError`` naming the field."""

from __future__ import annotations

from typing import TypeVar, assert_never, get_args

from apf import messages as m
from apf import registers
from apf.io_faults import IoFaultWish
from apf.protocol_faults import InjectName
from apf.v1 import guest_pb2 as guest
from apf.v1 import host_pb2 as host
from apf.v1 import types_pb2 as types

RUN_VCPU = "/apf.v1.HostService/RunVcpu"
"""A vCPU's stream to hostd, as gRPC calls it."""
TAKE_TRAPS = "/apf.v1.GuestService/TakeTraps"
"""A vCPU's stream to guestsched."""

K = TypeVar("K")
V = TypeVar("V")


class WireError(Exception):
    """A message that no correct peer sends; names field, value and what is allowed."""


_ACCESS_OUT = {
    m.Access.READ: types.ACCESS_READ,
    m.Access.WRITE: types.ACCESS_WRITE,
    m.Access.EXEC: types.ACCESS_EXEC,
}
_ACCESS_IN = {number: access for access, number in _ACCESS_OUT.items()}
_MODE_OUT = {
    m.FaultMode.BLOCKING: host.FaultRaised.MODE_BLOCKING,
    m.FaultMode.NOWAIT: host.FaultRaised.MODE_NOWAIT,
}
_MODE_IN = {number: mode for mode, number in _MODE_OUT.items()}
_KIND_OUT = {m.FaultKind.MINOR: host.Mapped.KIND_MINOR, m.FaultKind.MAJOR: host.Mapped.KIND_MAJOR}
_KIND_IN = {number: kind for kind, number in _KIND_OUT.items()}
_ERROR_OUT = {
    m.PageError.READ: types.PAGE_ERROR_READ,
    m.PageError.TORN: types.PAGE_ERROR_TORN,
    m.PageError.LOST: types.PAGE_ERROR_LOST,
    m.PageError.OUT_OF_MEMORY: types.PAGE_ERROR_OUT_OF_MEMORY,
}
_ERROR_IN = {number: error for error, number in _ERROR_OUT.items()}
_ACCOUNT_OUT = {
    m.Account.IDLE: guest.Dispatch.ACCOUNT_IDLE,
    m.Account.COUNTING: guest.Dispatch.ACCOUNT_COUNTING,
    m.Account.FAULTING: guest.Dispatch.ACCOUNT_FAULTING,
    m.Account.OTHER: guest.Dispatch.ACCOUNT_OTHER,
}
_MET_OUT = {
    m.FaultKind.MINOR: guest.FaultMet.KIND_MINOR,
    m.FaultKind.MAJOR: guest.FaultMet.KIND_MAJOR,
    m.FaultKind.ASYNC: guest.FaultMet.KIND_ASYNC,
}
_MET_IN = {number: kind for kind, number in _MET_OUT.items()}
_INJECTED = {what: what for what in get_args(InjectName)}
_PATHS = {int(path): path for path in m.KernelPath}
_ACCOUNT_IN = {number: account for account, number in _ACCOUNT_OUT.items()}


HOST_KINDS: dict[type, str] = {
    m.FaultRaised: "fault",
    m.PrefaultRaised: "prefault",
    m.Mapped: "mapped",
    m.Retry: "retry",
    m.InProgress: "in_progress",
    m.Failed: "failed",
}
"""What requests to hostd and its replies are called on the wire, and counted as. WhichOneof costs a microsecond."""


def _known(table: dict[K, V], number: K, field: str) -> V:
    try:
        return table[number]
    except KeyError:
        raise WireError(f"{field} = {number}: allowed: {', '.join(str(key) for key in table)}") from None


# vCPU and hostd ------------------------------------------------------------------------------------------------


def host_request_out(request: m.HostRequest, time_ns: int, seq: int) -> host.RunVcpuRequest:
    """A request as it goes to hostd."""
    # Here and below: fields that are set in place take a third of the time of messages that are made and put in.
    message = host.RunVcpuRequest(time_ns=time_ns, seq=seq)
    match request:
        case m.FaultRaised():
            fault = message.fault
            fault.gfn, fault.access, fault.mode = request.gfn, _ACCESS_OUT[request.access], _MODE_OUT[request.mode]
            if request.work:
                fault.work = request.work
            if request.forgotten:
                fault.forgotten.extend(request.forgotten)
        case m.PrefaultRaised():
            prefault = message.prefault
            prefault.gfn, prefault.work = request.gfn, request.work
        case _:
            assert_never(request)
    return message


def host_request_in(message: host.RunVcpuRequest, guest_pages: int) -> m.HostRequest:
    """A request as hostd takes it; ``guest_pages`` bounds the gfn."""
    match message.WhichOneof("request"):
        case "fault":
            fault = message.fault
            access = _known(_ACCESS_IN, fault.access, "fault.access")
            mode = _known(_MODE_IN, fault.mode, "fault.mode")
            request: m.HostRequest = m.FaultRaised(fault.gfn, access, mode, fault.work, tuple(fault.forgotten))
            if (fault.work == 0) is (mode is m.FaultMode.NOWAIT):
                raise WireError(f"fault.work = {fault.work}: a token with MODE_NOWAIT, 0 otherwise")
        case "prefault":
            request = m.PrefaultRaised(message.prefault.gfn, message.prefault.work)
        case other:
            raise WireError(f"request = {other}: allowed: fault, prefault")
    if request.gfn >= guest_pages:
        raise WireError(f"gfn = {request.gfn}: the VM has pages 0 to {guest_pages - 1}")
    return request


def host_reply_out(reply: m.HostReply, seq: int) -> host.RunVcpuResponse:
    """A reply as it leaves hostd."""
    message = host.RunVcpuResponse(seq=seq, at_ns=reply.at_ns)
    match reply:
        case m.Mapped():
            mapped = message.mapped
            mapped.gfn, mapped.pfn, mapped.writable = reply.gfn, reply.pfn, reply.writable
            mapped.kind, mapped.stall_ns = _KIND_OUT[reply.kind], reply.stall_ns
        case m.Retry():
            message.retry.SetInParent()
        case m.InProgress():
            progress = message.in_progress
            progress.work, progress.ready_at_ns = reply.work, reply.ready_at_ns
        case m.Failed():
            failed = message.failed
            failed.gfn, failed.error, failed.stall_ns = reply.gfn, _ERROR_OUT[reply.error], reply.stall_ns
        case _:
            assert_never(reply)
    return message


def host_reply_in(message: host.RunVcpuResponse) -> m.HostReply:
    """A reply as the vCPU takes it."""
    match message.WhichOneof("reply"):
        case "mapped":
            mapped = message.mapped
            kind = _known(_KIND_IN, mapped.kind, "mapped.kind")
            return m.Mapped(message.at_ns, mapped.gfn, mapped.pfn, mapped.writable, kind, mapped.stall_ns)
        case "retry":
            return m.Retry(message.at_ns)
        case "in_progress":
            return m.InProgress(message.at_ns, message.in_progress.work, message.in_progress.ready_at_ns)
        case "failed":
            failed = message.failed
            error = _known(_ERROR_IN, failed.error, "failed.error")
            return m.Failed(message.at_ns, failed.gfn, error, failed.stall_ns)
        case other:
            raise WireError(f"reply = {other}: allowed: mapped, retry, in_progress, failed")


# vCPU and guestsched -------------------------------------------------------------------------------------------


def trap_out(raised: m.TrapRaised, time_ns: int, seq: int) -> guest.TakeTrapsRequest:
    """A trap as it goes to guestsched."""
    message = guest.TakeTrapsRequest(
        time_ns=time_ns,
        seq=seq,
        registers=raised.registers,
        min_flt=raised.min_flt,
        maj_flt=raised.maj_flt,
        kernel=raised.kernel,
    )
    for fault in raised.faults:
        message.faults.add(gfn=fault.gfn, kind=_MET_OUT[fault.kind])
    for sample in raised.samples:
        message.samples.add(task=sample.task, rip=sample.rip, path=sample.path, count=sample.count)
    match raised.trap:
        case m.Booted():
            message.booted.SetInParent()
        case m.TickArrived():
            message.tick.SetInParent()
        case m.TimerArrived():
            message.timer.SetInParent()
        case m.InterruptArrived():
            message.interrupt.SetInParent()
        case m.Fetched(data=data):
            message.fetched.data = data
        case m.NotPresentArrived(token=token):
            message.not_present.token = token
        case m.PageReadyArrived(token=token, failed=failed):
            message.page_ready.token = token
            message.page_ready.failed = failed
        case m.SyscallRaised(data=data):
            message.syscall.SetInParent()
            message.syscall.data = data
        case m.ExceptionRaised(vector=vector, address=address, rip=rip):
            exception = guest.ExceptionRaised(vector=vector, address=address, rip=rip)
            message.exception.CopyFrom(exception)
        case m.RunFailed(gfn=gfn, error=error):
            message.run_failed.CopyFrom(guest.RunFailed(gfn=gfn, error=_ERROR_OUT[error]))
        case m.Stopped():
            message.stopped.SetInParent()
        case _:
            assert_never(raised.trap)
    return message


def trap_in(message: guest.TakeTrapsRequest) -> m.TrapRaised:
    """A trap as guestsched takes it."""
    held = message.registers if message.HasField("registers") else None
    if held is not None and len(held) != registers.FILE_BYTES:
        raise WireError(f"registers: {len(held)} bytes; allowed: {registers.FILE_BYTES}")
    match message.WhichOneof("trap"):
        case "booted":
            trap: m.Trap = m.Booted()
        case "tick":
            trap = m.TickArrived()
        case "not_present":
            trap = m.NotPresentArrived(message.not_present.token)
        case "page_ready":
            trap = m.PageReadyArrived(message.page_ready.token, message.page_ready.failed)
        case "syscall":
            trap = m.SyscallRaised(message.syscall.data)
        case "exception":
            exception = message.exception
            trap = m.ExceptionRaised(exception.vector, exception.address, exception.rip)
        case "run_failed":
            error = _known(_ERROR_IN, message.run_failed.error, "run_failed.error")
            trap = m.RunFailed(message.run_failed.gfn, error)
        case "timer":
            trap = m.TimerArrived()
        case "interrupt":
            trap = m.InterruptArrived()
        case "fetched":
            trap = m.Fetched(message.fetched.data)
        case "stopped":
            trap = m.Stopped()
        case other:
            raise WireError(
                f"trap = {other}: allowed: booted, tick, timer, interrupt, not_present, page_ready, syscall, "
                f"exception, fetched, run_failed, stopped"
            )
    if len(message.faults) > m.FAULTS_LOGGED_MAX:
        raise WireError(f"faults: {len(message.faults)}; allowed: at most {m.FAULTS_LOGGED_MAX}")
    faults = tuple(m.FaultMet(fault.gfn, _known(_MET_IN, fault.kind, "faults.kind")) for fault in message.faults)
    samples = tuple(
        m.Sample(sample.task, sample.rip, _known(_PATHS, sample.path, "samples.path"), sample.count)
        for sample in message.samples
    )
    return m.TrapRaised(trap, held, message.min_flt, message.maj_flt, faults, samples, message.kernel)


def dispatch_out(dispatch: m.Dispatch, seq: int) -> guest.TakeTrapsResponse:
    """A dispatch as it leaves guestsched."""
    message = guest.Dispatch(
        task=dispatch.task,
        asid=dispatch.asid,
        account=_ACCOUNT_OUT[dispatch.account],
        registers=dispatch.registers,
        run_until_ns=dispatch.run_until_ns,
        apf_ns=dispatch.apf_ns,
        timer_ns=None if dispatch.timer_ns == m.NEVER_NS else dispatch.timer_ns,
        log_faults=dispatch.log_faults,
        shutdown=dispatch.shutdown,
    )
    for step in dispatch.steps:
        match step:
            case m.MsrWrite(msr=msr, value=value):
                message.steps.add(wrmsr=guest.MsrWrite(msr=msr, value=value))
            case m.Store(gpa=gpa, data=data):
                message.steps.add(store=guest.Copy(gpa=gpa, data=data))
            case _:
                assert_never(step)
    for gpa, data in dispatch.copies:
        message.copies.add(gpa=gpa, data=data)
    for gpa, length in dispatch.fetch:
        message.fetch.add(gpa=gpa, length=length)
    for gpa, length in dispatch.syscall_fetch:
        message.syscall_fetch.add(gpa=gpa, length=length)
    for fault in dispatch.injections:
        message.injections.add(what=fault.what, nth=fault.nth, count=fault.count, for_ns=fault.for_ns)
    for space in dispatch.spaces:
        extents = [
            guest.Extent(
                gva=extent.gva,
                gfn=extent.gfn,
                pages=extent.pages,
                writable=extent.writable,
                executable=extent.executable,
            )
            for extent in space.extents
        ]
        message.spaces.append(guest.AddressSpace(asid=space.asid, extents=extents))
    return guest.TakeTrapsResponse(seq=seq, at_ns=dispatch.at_ns, dispatch=message)


def dispatch_in(message: guest.TakeTrapsResponse) -> m.Dispatch:
    """A dispatch as the vCPU takes it."""
    if message.WhichOneof("reply") != "dispatch":
        raise WireError(f"reply = {message.WhichOneof('reply')}: allowed: dispatch")
    dispatch = message.dispatch
    return m.Dispatch(
        message.at_ns,
        dispatch.task,
        dispatch.asid,
        _known(_ACCOUNT_IN, dispatch.account, "dispatch.account"),
        dispatch.registers if dispatch.HasField("registers") else None,
        dispatch.run_until_ns,
        dispatch.apf_ns,
        tuple(
            m.AddressSpace(
                space.asid,
                tuple(m.Extent(e.gva, e.gfn, e.pages, e.writable, e.executable) for e in space.extents),
            )
            for space in dispatch.spaces
        ),
        tuple(_step_in(step) for step in dispatch.steps),
        dispatch.timer_ns if dispatch.HasField("timer_ns") else m.NEVER_NS,
        tuple((copy.gpa, copy.data) for copy in dispatch.copies),
        tuple((piece.gpa, piece.length) for piece in dispatch.fetch),
        dispatch.log_faults,
        dispatch.shutdown,
        tuple((piece.gpa, piece.length) for piece in dispatch.syscall_fetch),
        tuple(
            m.ProtocolFault(_known(_INJECTED, fault.what, "injections.what"), fault.nth, fault.count, fault.for_ns)
            for fault in dispatch.injections
        ),
    )


def _step_in(step: guest.KernelStep) -> m.KernelStep:
    match step.WhichOneof("step"):
        case "wrmsr":
            return m.MsrWrite(step.wrmsr.msr, step.wrmsr.value)
        case "store":
            return m.Store(step.store.gpa, step.store.data)
        case other:
            raise WireError(f"steps.step = {other}: allowed: wrmsr, store")


# operators and hostd -------------------------------------------------------------------------------------------


def io_fault_in(message: host.InjectIoFaultRequest) -> IoFaultWish:
    """What an operator wants the swap device to do."""
    fields = {"what": message.what, "for_ns": message.for_ns, "add_ns": message.add_ns}
    given = ("nth", "count", "vm", "gfn", "slot", "io", "factor")
    fields |= {name: getattr(message, name) for name in given if message.HasField(name)}
    try:
        return IoFaultWish.of(fields)
    except ValueError as error:
        raise WireError(str(error)) from error


# guestsched and hostd: loading ---------------------------------------------------------------------------------


def segments_out(vm: int, segments: list[m.Segment]) -> host.LoadVmRequest:
    """What LoadVm carries."""
    return host.LoadVmRequest(
        vm=vm,
        segments=[
            host.Segment(
                gfn=segment.gfn,
                pages=segment.pages,
                data=segment.data,
                stamps=[host.Stamp(offset=s.offset, base=s.base, stride=s.stride) for s in segment.stamps],
                demand_zero=segment.demand_zero,
                read_only=segment.read_only,
            )
            for segment in segments
        ],
    )


def segments_in(message: host.LoadVmRequest, guest_pages: int) -> list[m.Segment]:
    """The segments of a LoadVm request, each checked by itself."""
    segments = []
    for index, segment in enumerate(message.segments):
        where = f"segments[{index}]"
        if not 0 < segment.pages <= guest_pages - segment.gfn:
            raise WireError(f"{where}: pages {segment.gfn} + {segment.pages}: the VM has 0 to {guest_pages - 1}")
        if len(segment.data) > segment.pages * m.PAGE_SIZE:
            raise WireError(f"{where}.data: {len(segment.data)} bytes do not fit into {segment.pages} pages")
        for stamp in segment.stamps:
            if stamp.offset % 8 or stamp.offset > m.PAGE_SIZE - 24:
                raise WireError(f"{where}.stamps.offset = {stamp.offset}: multiples of 8 up to {m.PAGE_SIZE - 24}")
        if segment.demand_zero and segment.data:
            raise WireError(f"{where}.data: {len(segment.data)} bytes, but demand_zero: such a segment starts empty")
        stamps = tuple(m.Stamp(s.offset, s.base, s.stride) for s in segment.stamps)
        flags = (segment.demand_zero, segment.read_only)
        segments.append(m.Segment(segment.gfn, segment.pages, segment.data, stamps, *flags))
    return segments


def check_layout(segments: list[m.Segment]) -> None:
    """Check the segments of a VM together."""
    if not segments:
        raise WireError("segments: at least one")
    end = 0
    for segment in sorted(segments, key=lambda each: each.gfn):
        if segment.gfn < end:
            raise WireError(f"segments: pages {segment.gfn} to {end - 1} are in two of them; allowed: in one at most")
        end = segment.gfn + segment.pages
