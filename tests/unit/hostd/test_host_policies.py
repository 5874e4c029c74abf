"""Reclaim policies besides the kernel's, and policies of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from apf.scenario import ScenarioError
from hostd import reclaim_policies
from hostd.core.lru import Kernel, Policy
from hostd.core.page import LRU
from hostd.core.policies import Clock, Fifo, Lru
from tests.unit.hostd.rig import WINDOW_NS, Rig, filled


def taken(policy: Policy, want: int) -> list[int]:
    found: list[int] = []

    def evict(victims: list[int]) -> list[int]:
        found.extend(victims)
        return []

    scan = policy.scan(want, evict)
    assert scan.taken == len(found)
    return found


def test_fifo_does_not_care_for_use() -> None:
    policy, pages, young = filled(Fifo, 4)
    young[0] = young[1] = 1
    assert taken(policy, 2) == [0, 1]
    assert pages.flags[2] & LRU
    assert [*policy.lists()[0]] == [2, 3] and policy.sizes() == (2, 0)


def test_clock_passes_over_a_used_page_once() -> None:
    policy, _pages, young = filled(Clock, 3)
    young[0] = 1
    assert taken(policy, 1) == [1]
    assert not young[0]
    assert taken(policy, 2) == [2, 0]


def test_clock_comes_round_if_all_are_used() -> None:
    policy, _pages, young = filled(Clock, 3)
    young[:] = b"\1\1\1"
    assert taken(policy, 1) == [0]


def test_lru_goes_by_the_last_use() -> None:
    policy, _pages, _young = filled(Lru, 4)
    policy.used([0, 2])
    policy.used([1, 99])
    assert taken(policy, 4) == [3, 0, 2, 1]


@pytest.mark.parametrize("kind", [Kernel, Fifo, Clock, Lru])
def test_what_cannot_go_stays_and_the_scan_ends(kind: type[Policy]) -> None:
    policy, pages, _young = filled(kind, 3)
    pages.pins[0] = 1
    assert taken(policy, 3) == [1, 2]
    assert policy.scan(1, lambda victims: victims).taken == 0
    pages.pins[0] = 0
    assert policy.scan(1, lambda victims: victims).taken == 0
    assert sorted(key for pages_of in policy.lists() for key in pages_of) == [0]
    policy.clear()
    assert policy.sizes() == (0, 0)


@pytest.mark.parametrize("kind", [Kernel, Fifo, Clock, Lru])
def test_what_was_written_is_the_next_to_go(kind: type[Policy]) -> None:
    policy, _pages, _young = filled(kind, 3)
    taken(policy, 1)
    policy.add_tail(0)
    assert taken(policy, 1) == [0]


def test_a_policy_that_wants_use_has_work_at_every_border() -> None:
    rig = Rig(reclaim=Lru)
    rig.load(64)
    assert rig.core.border_due_ns() == 1, "at the next border"
    rig.border(WINDOW_NS, accessed=[0, 5])
    assert rig.core.border_due_ns() == WINDOW_NS + 1, "not the same border again"
    rig.mapped(100, WINDOW_NS + 1)
    assert not {0, 5} & set(rig.core._mm.evicting) and 1 in rig.core._mm.evicting
    assert Rig().core.border_due_ns() is None


class NotRecentlyUsed(Fifo):
    """A user's policy."""


def test_a_users_policy_comes_from_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines = ("nru = tests.unit.hostd.test_host_policies:NotRecentlyUsed", "bad = pathlib:Path")
    (info / "entry_points.txt").write_text("[apf.reclaim]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert reclaim_policies.load("nru").__name__ == "NotRecentlyUsed"
    assert reclaim_policies.load("kernel") is Kernel
    with pytest.raises(ScenarioError, match=r"host.reclaim = 'bad': .* is no subclass of hostd.core.lru.Policy"):
        reclaim_policies.load("bad")
    with pytest.raises(ScenarioError, match=r"host.reclaim = 'mru': allowed: kernel, clock, lru, fifo .*bad, nru"):
        reclaim_policies.load("mru")
