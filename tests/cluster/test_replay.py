"""Load from outside through the API: what callers are told, and that the run can be repeated in the twin.

The clients are in ``load_calls``; each ends its run, whose log of arrivals the twin then replays.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from guest_runs import Table, guests
from load_runs import Loaded, replays, under_load

from guestsched.core.access import BATCH_MAX

ACCESS_NS = 60_000
"""An access that waits for no I/O takes less; a page read from the device more."""


KV: Table = {"name": "kv", "memory": "6MiB", "populate": False}
QUIET: Table = {"name": "quiet", "thread": [{"program": "idle"}]}


@pytest.fixture(scope="module", params=["off", "pv2010"])
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """1536 pages where there is room for 1024, two access threads, and a process that sleeps."""
    scenario = guests(request.param, {**KV, "access_threads": 2}, QUIET, duration_s=0, profile_hz=1000)
    return under_load(scenario, tmp_path_factory.mktemp(request.param), "pages")


def test_the_twin_repeats_it(pages: Loaded) -> None:
    replays(pages)
    for kind in ("access", "replay", "spawn", "kill", "shutdown"):
        assert pages.arrivals(kind), kind


def test_what_an_access_met(pages: Loaded) -> None:
    said = pages.said
    major = "async" if pages.ran.result.mode == "pv2010" else "major"
    assert said["first"]["met"] == "minor", "the first touch"
    assert said["again"]["met"] == "hit"
    assert said["replay"]["met"] == {"minor": 1400}
    assert said["back"]["met"] == major, "it was swapped out"
    assert said["and again"]["met"] == "hit"
    assert said["wide"]["met"] == major, "of several pages the slowest"
    for name in ("first", "again", "and again"):
        assert said[name]["latency_ns"] < ACCESS_NS
    assert said["first"]["latency_ns"] > said["and again"]["latency_ns"]
    assert said["wide"]["latency_ns"] > said["back"]["latency_ns"] > ACCESS_NS


def test_latency_is_from_arrival_to_the_last_instruction(pages: Loaded) -> None:
    arrived = {int(ticket): int(at) for at, _, ticket, *_ in pages.ran.lines("guest-0", "arrive_access")}
    retired = [
        (arrived[int(ticket)], int(done_ns) - arrived[int(ticket)], met.lower())
        for _, _, ticket, done_ns, met in pages.ran.lines("guest-0", "retired")
    ]
    stream = [each for each in pages.said["stream"].values() if isinstance(each, dict)]
    named = [pages.said[name] for name in ("first", "again", "back", "and again", "wide", "other")]
    told = [(each["arrived_ns"], each["latency_ns"], each["met"]) for each in (*named, *stream)]
    assert sorted(told) == sorted(retired) and len(told) == 6 + 239


def test_a_stream_answers_each_access_once_and_tells_what_is_wrong_with_one(pages: Loaded) -> None:
    results = pages.said["stream"]
    assert set(results) == {str(number) for number in range(240)}
    code, text = results.pop("100")
    assert code == 3 and text.startswith("page = 1000000: ")
    assert {each["task"] for each in results.values()} == {1, 2}, "both access threads have worked"
    assert len({each["met"] for each in results.values()}) >= 3


def test_a_replay_is_one_tasks_work_in_order(pages: Loaded) -> None:
    done = pages.said["replay"]
    ((ticket, _process, items),) = pages.arrivals("replay")
    assert len(items) == 1400 and done["task"] in (1, 2)
    (line,) = pages.ran.lines("guest-0", "replayed")
    assert [int(word) for word in (line[0], *line[2:])] == [done["finished_ns"], ticket, 1400]
    minor_ns = 1400 * (1500 + 700 + 500)
    assert done["finished_ns"] - done["arrived_ns"] > minor_ns, "each was a first touch"


def test_errors_have_a_status_and_name_the_field(pages: Loaded) -> None:
    for what, status, text, expected, begins in pages.said["errors"]:
        assert status == expected, f"{what}: {text}"
        assert text.startswith(begins), what
        assert re.search(r"\d|name one of the two|at least one|allowed|should be|match|pairs|none", text), (
            f"{what}: {text}"
        )


def test_processes_come_and_go(pages: Loaded) -> None:
    said = pages.said
    assert len(said["spawned"]["tasks"]) == 2 and said["spawned"]["at_ns"] > said["replay"]["finished_ns"]
    for state, killed, sum_exec_ns, _ in said["its end"]:
        assert (state, killed) == ("DEAD", "its lifetime is over")
        assert 500_000 < sum_exec_ns <= 1_100_000, "two vCPUs, a millisecond"
    first, second = said["counting"]
    assert said["killed"] == [[second], [first]] and said["killed again"] == []
    for state, killed, _, _ in said["their end"]:
        assert (state, killed) == ("DEAD", "killed from outside")
    assert said["other"]["met"] == "minor"
    status, text = said["other is gone"]
    assert status == "FAILED_PRECONDITION" and "no access threads" in text


def test_health_reflection_and_what_else_only_looks(pages: Loaded) -> None:
    looks = pages.said["looks"]
    assert set(looks["health"].values()) == {"SERVING"} and len(looks["health"]) == 2
    service = "apf.v1.LoadService"
    assert {service, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(looks["services"])
    assert looks["processes"]["kv"] == ["access_thread/0", "access_thread/1"]
    assert set(looks["processes"]) == {"kv", "quiet", "sequential", "count", "other"}
    before, after = looks["watched"]
    assert before["counters"]["accesses"] == after["counters"]["accesses"] == 6 + 239
    assert before["counters"]["faults_minor"] >= 1400 and before["counters"]["queued"] == 0
    assert before["latency_ns"]["p50"] <= before["latency_ns"]["p99"] <= before["latency_ns"]["p99.99"]
    assert looks["samples"] > 0 and "[kernel];idle;native_safe_halt " in looks["folded"]


def test_who_waits_at_the_end_is_told(pages: Loaded) -> None:
    assert pages.said["waiter"] == ["UNAVAILABLE", "the run is ending"]
    assert pages.ran.result.vcpus and all(row["killed"] == "" for row in pages.ran.tasks("idle"))


def test_overload_and_callers_who_do_not_wait(tmp_path: Path) -> None:
    loaded = under_load(guests("off", {**KV, "access_threads": 1}, duration_s=0), tmp_path, "overload")
    said = loaded.said

    # Six streams have 6144 accesses in flight; the queue takes 4096.
    assert said["flood"]["codes"]["8"] >= 1024
    assert "process 1: 4096 accesses wait already" in said["flood"]["texts"]
    assert said["flood"]["ended"] == ["cancelled"] * 6

    # Nobody touched the pages of the caller whose deadline passed, and of the one that gave up.
    assert said["late"][0] == "DEADLINE_EXCEEDED"
    assert [each["met"] for each in said["never begun"]] == ["minor", "minor"]
    retired = {int(words[2]) for words in loaded.ran.lines("guest-0", "retired")}
    for page in (1500, 1501):
        tickets = [ticket for ticket, _, offset, *_ in loaded.arrivals("access") if offset == page * 4096]
        assert [ticket for ticket in tickets if ticket in retired] == tickets[-1:]
    # Of the others those are still performed that the thread had: a batch, whenever some were cancelled.
    cancels = loaded.ran.lines("guest-0", "arrive_cancel")
    taken_back = {int(words[2]) for words in cancels}
    assert len(taken_back) > 2000
    assert len(taken_back & retired) <= BATCH_MAX * len({words[0] for words in cancels})

    # The run ends under their feet.
    assert said["waiters"] == [["UNAVAILABLE", "the run is ending"]] * 5
    assert set(said["last"]["codes"]) <= {"0", "14"} and said["last"]["codes"]["14"] > 500
    assert said["last"]["ended"] == ["UNAVAILABLE"]
    replays(loaded)


BUSY: Table = {"name": "busy", "thread": [{"program": "work_thread", "count": 2}]}
SWAPPING: Table = {"name": "swapping", "memory": "6MiB", "thread": [{"program": "fault_thread", "nice": 5}]}


@pytest.mark.parametrize(
    ("apf", "others", "more"),
    [
        ("pv2010", (BUSY, SWAPPING), {"sched__policy": "eevdf"}),
        ("off", (), {"pace": "0.05", "window_ns": 50_000}),
    ],
    ids=["beside busy tasks", "alone, at a pace"],
)
def test_steady_load_and_callers_who_go(
    apf: str, others: tuple[Table, ...], more: dict[str, Any], tmp_path: Path
) -> None:
    scenario = guests(apf, {**KV, "access_threads": 3}, *others, duration_s=0, **more)
    loaded = under_load(scenario, tmp_path, "steady")
    assert sum(loaded.said["met"].values()) == 200 and loaded.said["met"]["minor"] > 50
    replays(loaded)


def test_faults_of_the_protocol_injected_meanwhile(tmp_path: Path) -> None:
    scenario = guests("pv", {**KV, "access_threads": 2}, duration_s=0, vm__vcpus=1)
    loaded = under_load(scenario, tmp_path, "spoiled")
    said, ran = loaded.said, loaded.ran
    assert [len(said[name]) for name in ("dropped", "masked")] == [3, 1] and "async" in said["dropped"]
    assert sorted(said["states"]) == ["APF_WAIT", "WAIT"] and said["lost"] == ["UNAVAILABLE", "the run is ending"]
    asked = [what for what, _ in said["injected"]]
    assert set(asked) == {"dropped_ack", "restore", "lapic_off", "lost_ready"}

    # Those told are those that came, each at the time that its caller was told; and they happened.
    (vcpu,) = (name for name in ran.journals if name.startswith("vcpu"))
    told = [[words[2], int(words[0])] for words in ran.lines(vcpu, "inject")]
    assert told == said["injected"]
    assert [arrival[2] for arrival in loaded.arrivals("inject")] == asked
    assert [[words[4], int(words[5])] for words in ran.lines("guest-0", "inject")] == said["injected"]
    hit = [words[2] for words in ran.lines(vcpu, "injected")]
    assert hit.count("lost_ready") == hit.count("dropped_ack") == hit.count("lapic_off") == hit.count("lapic_on") == 1
    assert hit.count("restore") == asked.count("restore")
    replays(loaded)
