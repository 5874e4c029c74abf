"""Makes a vCPU from a scenario, and its report; the same for the worker process and the twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apf.chance import stream_key
from apf.clockpage import ClockPage
from apf.hostmem import HostMemory
from apf.journal import Journal
from apf.scenario import Scenario
from vcpud.core.injected import Injected, Injection
from vcpud.core.vcpu import VcpuConfig, VcpuCore
from vcpud.cpu.engine import Engine, Publisher
from vcpud.machine import Machine

NS_PER_S = 1_000_000_000


def vcpu_machine(
    scenario: Scenario,
    vm: int,
    vcpu: int,
    memory: HostMemory,
    journal: Journal,
    clock: ClockPage | None,
    participant: int,
    take_interrupt: Callable[[int], int],
    start_ns: int = 0,
) -> Machine:
    """VCPU ``vcpu`` of VM ``vm``, which joins its host at ``start_ns``.

    With a clock page, the engine publishes the vCPU's time while it runs.
    """
    period_ns = NS_PER_S // scenario.profile_hz if scenario.profile_hz else 0
    phase = stream_key(scenario.seed, f"profile.phase.{vm}.{vcpu}")
    config = VcpuConfig(
        vcpu=vcpu,
        mode=scenario.mode,
        cpu_mips=scenario.vm.cpu_mips,
        hz=scenario.vm.hz,
        end_ns=scenario.end_ns,
        costs=scenario.costs,
        sample_period_ns=period_ns,
        sample_phase_ns=phase % period_ns if period_ns else 0,
        hlt_exits=scenario.kvm.hlt_exits,
        shadow=scenario.kvm.mmu == "shadow",
        injections=tuple(
            Injection(Injected(one.what), start_ns + one.at_ns, one.nth, one.count, one.for_ns)
            for one in scenario.inject
            if (one.vm, one.vcpu) == (vm, vcpu)
        ),
        guest_bytes=scenario.vm.guest_memory,
        start_ns=start_ns,
        reports=scenario.swap.errors == "report",
    )
    publisher = None if clock is None else Publisher(clock.address, participant)
    engine = Engine(memory, vm, scenario.vm.cpu_mips, publisher, shadow=config.shadow)
    return Machine(VcpuCore(config, journal), engine, scenario.vm.cpu_mips, take_interrupt)


def vcpu_report(machine: Machine) -> dict[str, Any]:
    """What a vCPU has to say at the end of its run; the twin uses it too."""
    core = machine.core
    return {
        "retired": machine.engine.retired,
        "end_ns": core.now_ns,
        "counters": {name: getattr(core.counters, name) for name in core.counters.__slots__},
        "work": core.work(machine.engine.retired),
        "observed": core.observed.document(),
        "time_ns": {cause.value: spent for cause, spent in core.account.spent_ns.items()},
    }
