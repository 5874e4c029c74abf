"""Runs in the twin that check every core's invariants at every step, and vCPUs and guests against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apf.messages import ApfMode
from apf.scenario import Scenario
from deploy.twin import Twin

SETTLED = 50
"""Windows between two checks of all pages of the host, unless every step is to be checked."""


class Checked(Twin):
    """A twin that checks as it goes."""

    def __init__(self, scenario: Scenario, swap: Path, host_too: bool = False) -> None:
        super().__init__(scenario, swap)
        self.steps = 0
        if host_too:
            self.host.core.step = self._checked(self.host.core)  # type: ignore[method-assign]
        for machine in self.machines:
            machine.core.step = self._checked(machine.core)  # type: ignore[method-assign]
        for guest in self.guests:
            guest.core.step = self._checked(guest.core)  # type: ignore[method-assign]

    def _checked(self, core: Any) -> Any:
        step = core.step

        def checked(event: Any, now_ns: int) -> Any:
            self.steps += 1
            effects = step(event, now_ns)
            core.check()
            return effects

        return checked

    def agree(self) -> None:
        """Who waits in a guest is waited for in KVM, or told: in the queue, in the slot, or on the way."""
        for vm, guest in enumerate(self.guests):
            for node in guest.core.waiting():
                core = self.machines[vm * self.scenario.vm.vcpus + node.cpu].core
                live = {item.token for item in core.async_pf.queue if item.injected}
                assert node.token in live or core.telling, f"VM {vm}: {node} is nobody's any more\n{core.story()}"


def run_checked(scenario: Scenario, directory: Path, host_too: bool = False) -> Checked:
    """Run ``scenario`` to its end; what it came to is in the twin that is returned, closed.

    ``host_too``: check the host's core at every step as well, which takes most of the time then.
    """
    checked = Checked(scenario, directory / "swap", host_too)
    try:
        checked.start()
        windows = 0
        while checked.run_window():
            windows += 1
            if not scenario.inject:
                checked.agree()
            if windows % SETTLED == 0:
                checked.host.core.check()
        checked.check()
        result = checked.result(0.0)
        assert result.corrupt_pages == 0 and result.lost_writes == 0, scenario
        _events_add_up(scenario, checked)
    finally:
        checked.close()
    return checked


def _events_add_up(scenario: Scenario, checked: Checked) -> None:
    for machine in checked.machines:
        counters, core = machine.core.counters, machine.core
        if scenario.mode in (ApfMode.OFF, ApfMode.HALT):
            assert counters.not_present == counters.ready == 0
        if scenario.mode is ApfMode.OFF:
            assert counters.faults_async == counters.halts == 0
        if not scenario.inject:
            injected = [item for item in core.async_pf.queue if item.injected and item.state.value != "LISTED"]
            under_way = counters.not_present - (counters.ready - counters.wake_all) - len(injected)
            assert 0 <= under_way <= 1, f"{under_way} not-presents without a ready"
            assert counters.msr_gp == counters.dropped == 0
