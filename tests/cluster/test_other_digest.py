"""Another digest for another seed, any cost changed by 1 ns, and whatever is dropped, doubled or swapped."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import pytest
from cluster_runs import on_processes, small

from apf import messages as m
from apf.core import CoreError
from apf.costs import Costs
from apf.journal import Journal, Record
from apf.process import Failure
from apf.scenario import Scenario
from deploy import twin
from guestsched.shell import GuestShell
from hostd.core.events import BorderReached, RewriteEpt
from hostd.core.host import HostCore
from hostd.shell import HostShell
from vcpud.core.effects import MapPage
from vcpud.core.vcpu import VcpuCore


def digest(scenario: Scenario) -> str:
    return twin.run(scenario).digest


def changed(scenario: Scenario, cost: str) -> Scenario:
    """The scenario with one cost a nanosecond higher."""
    costs = scenario.costs.model_copy(update={cost: getattr(scenario.costs, cost) + 1})
    return scenario.model_copy(update={"costs": costs})


@pytest.mark.parametrize("device", ["nvme", "hdd-7200"])
@pytest.mark.parametrize("apf", ["off", "pv2010"])
def test_seed(apf: str, device: str) -> None:
    assert len({digest(small(apf, device, seed=seed)) for seed in (1, 2, 3)}) == 3


@pytest.fixture(scope="module")
def published() -> str:
    return digest(small())


OTHER_COSTS = ("interrupt_ns", "profile_sample_ns")
"""The benchmark has no timers and posts no interrupts, and is not profiled."""
COSTS_OF_PV = ("apf_ack_exit_ns",)


@pytest.mark.parametrize("cost", sorted(set(Costs.model_fields) - {*OTHER_COSTS, *COSTS_OF_PV}))
def test_each_cost_of_the_benchmark(cost: str, published: str) -> None:
    scenario = small()
    assert changed(scenario, cost).costs != scenario.costs
    assert digest(changed(scenario, cost)) != published


@pytest.mark.parametrize("cost", COSTS_OF_PV)
def test_each_cost_of_the_protocol_since_5_8(cost: str, published: str) -> None:
    scenario = small("pv")
    assert digest(changed(scenario, cost)) != digest(scenario)
    assert digest(changed(small(), cost)) == published, "no other protocol acknowledges"


@pytest.mark.parametrize("cost", OTHER_COSTS)
def test_each_other_cost(cost: str) -> None:
    """Of a run that starts tasks by timers, and is profiled."""
    threads = [{"program": "producer", "start_s": 0.001}, {"program": "consumer"}]
    scenario = small(profile_hz=1000, process=[{"memory": "16MiB", "thread": threads}])
    assert digest(changed(scenario, cost)) != digest(scenario)


# One event dropped, doubled or swapped ---------------------------------------------------------------------------


class Nth:
    """Calls ``mutant`` for the n-th call and ``original`` for the others; knows whether it came to that."""

    def __init__(self, original: Callable[..., Any], mutant: Callable[..., Any], n: int) -> None:
        self._original, self._mutant = original, mutant
        self._left = n
        self.done = False

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self.done = True
                return self._mutant(self._original, instance, *args, **kwargs)
            return self._original(instance, *args, **kwargs)

        return call


class NthWhere(Nth):
    """Counts calls whose result satisfies ``applies`` and gives the n-th's result to ``mutant``."""

    def __init__(
        self, original: Callable[..., Any], applies: Callable[[Any], bool], mutant: Callable[..., Any], n: int
    ) -> None:
        super().__init__(original, mutant, n)
        self._applies = applies

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._original(instance, *args, **kwargs)
            if self._applies(result):
                self._left -= 1
                if self._left == 0:
                    self.done = True
                    return self._mutant(result)
            return result

        return call


def dropped_border(original: Callable[..., None], shell: HostShell, now_ns: int) -> None:
    """Nothing of what the core decides at a border is carried out."""
    shell.core.step(BorderReached((), ()), now_ns)


def doubled_border(original: Callable[..., None], shell: HostShell, now_ns: int) -> None:
    original(shell, now_ns)
    original(shell, now_ns)


def dropped_request(original: Any, shell: HostShell, vm: int, vcpu: int, request: Any, now_ns: int) -> m.HostReply:
    """The host core never hears of the request; the vCPU is told to try again, as it would be after a refusal."""
    return m.Retry(now_ns + 1000)


def doubled_request(original: Any, shell: HostShell, vm: int, vcpu: int, request: Any, now_ns: int) -> m.HostReply:
    original(shell, vm, vcpu, request, now_ns)
    reply: m.HostReply = original(shell, vm, vcpu, request, now_ns)
    return reply


def late_request(original: Any, shell: HostShell, vm: int, vcpu: int, request: Any, now_ns: int) -> m.HostReply:
    reply: m.HostReply = original(shell, vm, vcpu, request, now_ns + 1)
    return reply


def dropped_trap(original: Any, shell: GuestShell, vcpu: int, raised: m.TrapRaised, now_ns: int) -> m.Dispatch:
    """The guest kernel never hears of the trap; the task simply goes on."""
    cpu = shell.core.cpu(vcpu)
    assert cpu.rq.curr is not None
    return m.Dispatch(now_ns + 1000, cpu.rq.curr.id, 1, m.Account.OTHER, None, cpu.run_until_ns)


def doubled_trap(original: Any, shell: GuestShell, vcpu: int, raised: m.TrapRaised, now_ns: int) -> m.Dispatch:
    original(shell, vcpu, raised, now_ns)
    dispatch: m.Dispatch = original(shell, vcpu, raised, now_ns)
    return dispatch


def dropped_record(original: Any, journal: Journal, record: Record) -> None:
    """One line of a journal is missing."""


def doubled_record(original: Any, journal: Journal, record: Record) -> None:
    original(journal, record)
    original(journal, record)


class SwappedRecords:
    """Holds the n-th record back until the next of the same journal is written."""

    def __init__(self, n: int) -> None:
        self._left = n
        self._held: tuple[Journal, Record] | None = None
        self.done = False
        self._original = Journal.record

    def __get__(self, instance: Journal, owner: type) -> Callable[..., None]:
        def record(line: Record) -> None:
            self._left -= 1
            if self._left == 0:
                self._held = (instance, line)
                return
            self._original(instance, line)
            if self._held is not None and self._held[0] is instance and self._held[1] != line:
                self._original(*self._held)
                self._held = None
                self.done = True

        return record


def mutated(scenario: Scenario) -> str | None:
    """Digest of a run of a mutant; None if the run failed loudly, as it may."""
    try:
        return digest(scenario)
    except (AssertionError, CoreError, KeyError, ValueError, OSError):
        return None


TARGETS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "border dropped": (HostShell, "border", dropped_border),
    "border doubled": (HostShell, "border", doubled_border),
    "request dropped": (HostShell, "take", dropped_request),
    "request doubled": (HostShell, "take", doubled_request),
    "request late": (HostShell, "take", late_request),
    "trap dropped": (GuestShell, "take", dropped_trap),
    "trap doubled": (GuestShell, "take", doubled_trap),
    "record dropped": (Journal, "record", dropped_record),
    "record doubled": (Journal, "record", doubled_record),
}


@pytest.mark.parametrize("n", [7, 101])
@pytest.mark.parametrize("what", sorted(TARGETS))
def test_mutants(what: str, n: int, published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, mutant = TARGETS[what]
    nth = Nth(getattr(owner, name), mutant, n)
    monkeypatch.setattr(owner, name, nth)
    assert mutated(small()) != published
    assert nth.done


@pytest.mark.parametrize("n", [7, 40, 101, 1001])
def test_two_records_swapped(n: int, published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = SwappedRecords(n)
    monkeypatch.setattr(Journal, "record", swapped)
    assert digest(small()) != published
    assert swapped.done


@pytest.mark.parametrize("n", [1, 5, 12])
def test_two_requests_swapped(n: int, published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two vCPUs ask in one window, the later request is answered first."""
    left, done = n, False

    def second(asking: list[tuple[int, int]]) -> tuple[int, int]:
        nonlocal left, done
        first = heapq.heappop(asking)
        if asking:
            left -= 1
            if left == 0:
                done = True
                first, later = heapq.heappop(asking), first
                heapq.heappush(asking, later)
        return first

    monkeypatch.setattr(twin, "heappop", second)
    assert mutated(small()) != published
    assert done


SOME = 0


def _is_mapping(effect: Any) -> bool:
    return isinstance(effect, MapPage) or (isinstance(effect, RewriteEpt) and any(effect.entries.values()))


def _maps(effects: list[Any]) -> bool:
    return any(map(_is_mapping, effects))


def _without_mapping(effects: list[Any]) -> list[Any]:
    """Without the first page that is mapped."""
    index = next(i for i, effect in enumerate(effects) if _is_mapping(effect))
    changed = effects[index]
    if isinstance(changed, MapPage):
        return effects[:index] + effects[index + 1 :]
    first = next(gfn for gfn, entry in changed.entries.items() if entry)
    rest = {gfn: entry for gfn, entry in changed.entries.items() if gfn != first}
    return [*effects[:index], RewriteEpt(changed.vm, rest), *effects[index + 1 :]]


@pytest.mark.parametrize(("kind", "n"), [(MapPage, 2), (MapPage, 40), (RewriteEpt, SOME)])
def test_an_effect_dropped(kind: type, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is in no overlay, or in the overlay but never in the EPT, is missed when it is used again.

    Which of the latter are used again before they are evicted changes with every change of reclaim: one of a few is.
    """
    if n == SOME:
        assert any(_dropped(kind, one, monkeypatch) for one in (1, 2, 3, 5, 8, 13, 21, 34)), "nobody misses a mapping"
    else:
        assert _dropped(kind, n, monkeypatch)


def _dropped(kind: type, n: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the digest tells."""
    scenario = small("off", vm__group_memory="6MiB", bench__buffer="8MiB", bench__work_threads=0, vm__vcpus=1)
    expected = digest(scenario)
    owner: type = VcpuCore if kind is MapPage else HostCore
    nth = NthWhere(owner.step, _maps, _without_mapping, n)  # both have it
    with monkeypatch.context() as patched:
        patched.setattr(owner, "step", nth)
        found = mutated(scenario)
    assert nth.done
    return found != expected


def test_a_request_doubled_on_the_processes(published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostShell, "take", Nth(HostShell.take, doubled_request, 40))
    try:
        found = on_processes(small()).digest
    except Failure:
        found = ""
    assert found != published


def test_the_processes_without_a_mutation(published: str) -> None:
    """The control: what the mutants are compared with is what the processes come to."""
    assert on_processes(small()).digest == published
