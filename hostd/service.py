"""The gRPC face of one host: what arrives is checked, and handed to who decides."""

from __future__ import annotations

import asyncio

import grpc

from apf import limits, wire
from apf.clockpage import ClockPage
from apf.guard import parser
from apf.io_faults import endless_stop
from apf.messages import PAGE_SIZE
from apf.serving import TurnServer
from apf.streams import Peer
from apf.v1 import host_pb2, types_pb2
from apf.v1.host_pb2_grpc import HostServiceServicer
from apf.vcpu_stream import VcpuStream
from hostd.config import HostdConfig
from hostd.io_fault_requests import IO_FAULTS_MAX, IoFaultRequests
from hostd.shell import HostShell
from hostd.showing import memory_out
from hostd.vms import Vms

_IN = {kind: f"in.{name}" for kind, name in wire.HOST_KINDS.items()}
_OUT = {kind: f"out.{name}" for kind, name in wire.HOST_KINDS.items()}


class HostService(HostServiceServicer):
    """Answers vCPUs, guest kernels that load their VM, operators, and whoever watches."""

    def __init__(
        self,
        config: HostdConfig,
        turns: TurnServer,
        shell: HostShell,
        clock: ClockPage,
        vms: Vms,
        io_faults: IoFaultRequests,
    ) -> None:
        self._config = config
        self._turns = turns
        self._shell = shell
        self._clock = clock
        self._vms = vms
        self._io_faults = io_faults
        self._guest_pages = config.scenario.vm.guest_memory // PAGE_SIZE
        self._parse = parser(wire.RUN_VCPU, host_pb2.RunVcpuRequest.FromString)

    async def RunVcpu(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request_iterator: object,
        context: grpc.aio.ServicerContext[host_pb2.RunVcpuRequest, host_pb2.RunVcpuResponse],
    ) -> None:
        await self._turns.serve_vcpu(context, self._attached, self._take)

    def opened(self, peer: Peer) -> VcpuStream[host_pb2.RunVcpuRequest]:
        """RunVcpu, on a stream that is not on the event loop."""
        return VcpuStream(self._turns, peer, self._parse, self._attached, self._take)

    async def LoadVm(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request: host_pb2.LoadVmRequest,
        context: grpc.aio.ServicerContext[host_pb2.LoadVmRequest, host_pb2.LoadVmResponse],
    ) -> host_pb2.LoadVmResponse:
        if request.vm >= self._config.places:
            text = f"vm = {request.vm}: 0 to {self._config.places - 1}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        if self._vms.is_taken(request.vm):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"vm = {request.vm}: loaded already")
        try:
            segments = wire.segments_in(request, self._guest_pages)
            wire.check_layout(segments)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, limits.details(str(error)))
        start_ns = await self._vms.load(request.vm, tuple(segments))
        core = self._shell.core
        resident, swapped = core.resident_pages(request.vm), core.swap_pages
        return host_pb2.LoadVmResponse(resident_pages=resident, swapped_pages=swapped, start_ns=start_ns)

    async def InjectIoFault(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request: host_pb2.InjectIoFaultRequest,
        context: grpc.aio.ServicerContext[host_pb2.InjectIoFaultRequest, host_pb2.InjectIoFaultResponse],
    ) -> host_pb2.InjectIoFaultResponse:
        if not self._vms.is_running or self._turns.is_over:
            when = "is over" if self._turns.is_over else "has not begun"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the run {when}")
        try:
            wish = wire.io_fault_in(request)
            if wish.vm >= self._config.places:
                raise wire.WireError(f"vm = {wish.vm}: 0 to {self._config.places - 1}")
            if endless_stop(wish.what, wish.for_ns, self._config.scenario.duration_ns):
                raise wire.WireError("for_ns = 0: nothing would ever end a stop in a run until it is shut down")
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, limits.details(str(error)))
        if self._io_faults.is_full:
            text = f"{IO_FAULTS_MAX} failures have been asked for; no more in this run"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        at_ns = self._io_faults.ask(wish)
        self._turns.ask_for_clock()
        return host_pb2.InjectIoFaultResponse(at_ns=await asyncio.shield(at_ns))

    async def GetMemory(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request: host_pb2.GetMemoryRequest,
        context: grpc.aio.ServicerContext[host_pb2.GetMemoryRequest, host_pb2.GetMemoryResponse],
    ) -> host_pb2.GetMemoryResponse:
        if request.vm >= self._config.places:
            text = f"vm = {request.vm}: 0 to {self._config.places - 1}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        if request.vm not in self._vms.present:
            present = ", ".join(map(str, sorted(self._vms.present))) or "none"
            text = f"vm = {request.vm}: no VM is there; on the host: {present}"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return memory_out(self._shell.core.watched(), request.vm, self._clock.now_ns())

    async def _attached(self, vm: int, vcpu: int, seq: int) -> host_pb2.RunVcpuResponse:
        start_ns = await self._vms.started(vm)
        return host_pb2.RunVcpuResponse(seq=seq, attached=types_pb2.Attached(start_ns=start_ns))

    def _take(self, vm: int, vcpu: int, message: host_pb2.RunVcpuRequest) -> tuple[int, host_pb2.RunVcpuResponse]:
        request = wire.host_request_in(message, self._guest_pages)
        reply = self._shell.take(vm, vcpu, request, message.time_ns)
        self._clock.set_border_due(self._shell.core.border_due_ns())
        response = wire.host_reply_out(reply, message.seq)
        counts = self._turns.messages
        counts[_IN[type(request)]] += 1
        counts[_OUT[type(reply)]] += 1
        return reply.at_ns, response
