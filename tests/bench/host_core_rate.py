"""How many faults a second the host core handles: random access to 1 GiB with half of it resident, no shell.

    python tests/bench/host_core_rate.py [faults] [off|noio|nowait] [hdd-7200|nvme]

Wall-clock figures, for people: not a test.
"""

from __future__ import annotations

import sys
import time

from apf.chance import Stream
from apf.costs import Costs
from apf.messages import (
    Access,
    FaultMode,
    FaultRaised,
    GupVariant,
    HostRequest,
    InProgress,
    Mapped,
    PrefaultRaised,
    Segment,
)
from hostd import device_profiles
from hostd.core.config import HostConfig, VmConfig
from hostd.core.device import default_window_ns
from hostd.core.events import BorderReached, Reply, RequestTaken, SegmentsLoaded
from hostd.core.host import HostCore

PAGES = 262_144
VCPUS = 4


def main(faults: int, mode: str, device: str) -> None:
    """Run and print."""
    profile = device_profiles.load(device)
    gup = GupVariant.NOIO if mode == "off" else GupVariant[mode.upper()]
    vm = VmConfig(PAGES, PAGES // 2, VCPUS)
    core = HostCore(HostConfig(1, gup, Costs(), default_window_ns(profile), (vm,), profile, 4096))
    began = time.perf_counter()
    core.step(SegmentsLoaded(0, (Segment(0, PAGES),)), 0)
    populated = time.perf_counter()
    chance, window_ns = Stream(1, "bench"), core.config.window_ns
    pending: list[list[tuple[int, int, HostRequest]]] = [[] for _ in range(VCPUS)]
    clocks = [0] * VCPUS
    border_ns = window_ns
    used: set[int] = set()
    mapped = [-1] * VCPUS
    step_s, handled, token = 0.0, 0, 0
    while handled < faults:
        vcpu = min(range(VCPUS), key=lambda one: clocks[one])
        now_ns = clocks[vcpu]
        if now_ns >= border_ns:
            if core.border_work:
                accessed = sorted(used)
                used.clear()
                begin = time.perf_counter()
                core.step(BorderReached(accessed, accessed), border_ns)
                step_s += time.perf_counter() - begin
            border_ns = max(border_ns + window_ns, now_ns // window_ns * window_ns)
            continue
        if mapped[vcpu] >= 0:
            used.add(mapped[vcpu])
            mapped[vcpu] = -1
        ready = [item for item in pending[vcpu] if item[0] <= now_ns]
        request: HostRequest
        if ready:
            pending[vcpu].remove(ready[0])
            request = ready[0][2]
        elif mode == "off" or len(pending[vcpu]) >= 4:
            if pending[vcpu]:
                clocks[vcpu] = min(item[0] for item in pending[vcpu])
                continue
            request = FaultRaised(chance.below(PAGES), Access.WRITE, FaultMode.BLOCKING)
        else:
            token += 1
            request = FaultRaised(chance.below(PAGES), Access.WRITE, FaultMode.NOWAIT, token)
        begin = time.perf_counter()
        effects = core.step(RequestTaken(0, vcpu, request), now_ns)
        step_s += time.perf_counter() - begin
        reply = effects[-1]
        assert isinstance(reply, Reply)
        answer = reply.reply
        clocks[vcpu] = answer.at_ns + 500
        if isinstance(answer, InProgress):
            pending[vcpu].append((answer.ready_at_ns, answer.work, PrefaultRaised(request.gfn, answer.work)))
        elif isinstance(answer, Mapped):
            mapped[vcpu] = answer.pfn
        handled += not isinstance(request, PrefaultRaised)
    core.check()
    major = core.counters["pgmajfault"]
    print(f"population of {PAGES} pages: {(populated - began) * 1000:.0f} ms")
    print(
        f"{device} {mode}: {handled} faults, {major} major, {step_s / major * 1e6:.1f} us of core each, "
        f"{handled / step_s:.0f} faults/s, virtual time {max(clocks) / 1e9:.3f} s"
    )
    print({name: value for name, value in core.counters.items() if value})


if __name__ == "__main__":
    argv = sys.argv[1:]
    main(
        int(argv[0]) if argv else 20_000,
        argv[1] if len(argv) > 1 else "noio",
        argv[2] if len(argv) > 2 else "nvme",
    )
