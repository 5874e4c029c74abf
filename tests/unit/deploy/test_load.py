"""The load generator against a guest that does what a test says."""

from __future__ import annotations

import asyncio
import io
import math
import os
import signal
from collections import Counter
from itertools import islice
from typing import Any

import grpc
import numpy as np
import pytest
from fake_guest import PAGES, FakeGuest, performed, serving
from rich.console import Console

from apf.v1 import load_pb2
from apf.v1.types_pb2 import Access
from deploy import load_report
from deploy.clusters import BadInput
from deploy.jobs import Job, accesses, arrivals, load_jobs, make_job, page_range
from deploy.latencies import HIGHEST_NS, PERCENTILES, Latencies
from deploy.load import JobRun, _run_jobs

pytestmark = pytest.mark.grpc

DEADLINE_S = 60


def perform(guest: FakeGuest, *jobs: Job) -> list[JobRun]:
    async def both() -> list[JobRun]:
        guest.over = asyncio.Event()
        async with asyncio.timeout(DEADLINE_S), serving(guest) as address:
            return await _run_jobs(address, jobs, None)

    return asyncio.run(both())


def job(**fields: Any) -> Job:
    return make_job({"process": "mem", **fields})


def test_a_closed_loop_keeps_its_depth_and_never_more() -> None:
    """The guest answers only when eight are in flight: a generator that keeps fewer there would not get on."""
    guest = FakeGuest(hold=8, expected=500)
    (run,) = perform(guest, job(iodepth=8, number=500))
    assert (run.performed, run.sent, run.unanswered, run.failed) == (500, 500, 0, "")
    assert guest.in_flight_peak == run.in_flight_peak == 8
    assert set(guest.message_sizes) == {1}
    assert all(access.process == 2 and access.page < PAGES for access in guest.seen)


def test_batches_fill_messages_but_the_last() -> None:
    guest = FakeGuest(hold=4, expected=50)
    (run,) = perform(guest, job(iodepth=8, batch=4, number=50))
    assert run.performed == 50 and guest.in_flight_peak <= 8
    assert Counter(guest.message_sizes) == {4: 12, 2: 1}


def test_an_open_loop_sends_at_its_rate_whatever_the_guest_does() -> None:
    """The guest answers nothing until the last one has come; the times at which accesses are due do not care."""
    guest = FakeGuest(hold=1 << 30, expected=200)
    (run,) = perform(guest, job(rate=400, arrivals="constant", number=200))
    assert run.performed == 200 and guest.in_flight_peak == 200
    assert run.late.count == run.wall_due.count == 200
    assert run.wall_s >= 199 / 400
    # the first waited for the last: latency is counted from when each was due
    assert run.wall_due.max_ns >= 199e9 / 400
    assert run.wall_due.mean_ns >= run.wall.mean_ns


def test_an_open_loop_is_bounded_too() -> None:
    """A guest that never answers stops the generator at the bound of the stream."""
    guest = FakeGuest(answer=lambda guest, item: None)
    (run,) = perform(guest, job(rate=1_000_000, number=2000, timeout_s="2"))
    assert run.in_flight_peak == run.unanswered == run.sent == 1024
    assert run.failed == "no answer for timeout_s = 2; 1024 accesses are waiting"


def test_what_an_open_loop_could_not_send_in_time_is_told() -> None:
    guest = FakeGuest(answer=lambda guest, item: None)
    (run,) = perform(guest, job(rate=20_000, arrivals="constant", duration_s="0.3", timeout_s="0.5"))
    assert run.in_flight_peak == run.unanswered == run.sent <= 1024
    assert run.sent + run.unsent == 6000
    assert run.late.count == 0 and run.failed


def test_late_answers_count_from_when_the_access_was_due() -> None:
    """Coordinated omission: 1024 in flight block the generator; what is sent late waits from when it was due."""
    guest = FakeGuest(hold=1024, expected=1500)
    (run,) = perform(guest, job(rate=50_000, arrivals="constant", number=1500))
    assert run.performed == 1500
    assert run.wall_due.max_ns > run.wall.percentiles()["p50"]
    assert run.wall_due.mean_ns >= run.wall.mean_ns + run.late.mean_ns - 1


def test_guest_latency_percentiles_of_a_known_distribution() -> None:
    served = iter(range(1, 2001))

    def answer(guest: FakeGuest, item: Any) -> Any:
        return performed(guest, item, latency_ns=next(served) * 1000)

    (run,) = perform(FakeGuest(answer), job(iodepth=16, number=2000))
    for percentile, (name, value) in zip(PERCENTILES, run.guest.percentiles().items(), strict=True):
        true = math.ceil(2000 * percentile / 100) * 1000
        assert true <= value <= true * 1.001 + 1, name
    assert run.guest.max_ns == 2_000_000 and run.guest.mean_ns == pytest.approx(1_000_500)
    assert run.guest_s == pytest.approx((1999 * 1000 + 2_000_000) / 1e9)
    document = run.document()
    assert sum(count for _, count in document["guest_latency"]["histogram"]) == 2000
    assert document["per_guest_s"] == pytest.approx(2000 / run.guest_s, rel=1e-3)


def test_what_accesses_met_and_errors_are_counted() -> None:
    def answer(guest: FakeGuest, item: Any) -> Any:
        if item.id % 4 == 0:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            return load_pb2.AccessStreamResponse.Item(id=item.id, code=code, message="the queue is full")
        answered = performed(guest, item)
        answered.response.met = 1 + item.id % 4
        return answered

    (run,) = perform(FakeGuest(answer), job(iodepth=4, number=400))
    assert run.errors == {"RESOURCE_EXHAUSTED": 100} and run.first_error == "the queue is full"
    assert run.met == {"minor": 100, "major": 100, "async": 100}
    assert run.performed == run.guest.count == 300 and not run.failed


def test_an_answer_nobody_asked_for_ends_the_job() -> None:
    def answer(guest: FakeGuest, item: Any) -> Any:
        return performed(guest, load_pb2.AccessStreamRequest.Item(id=item.id + 1))

    (run,) = perform(FakeGuest(answer), job(iodepth=1, number=5))
    assert run.failed == "an answer to access 2, which was not asked for or answered before"


def test_a_stream_that_breaks_is_told_with_what_there_was() -> None:
    class Breaking(FakeGuest):
        async def AccessStream(self, requests: Any, context: Any) -> None:
            request = await context.read()
            answers = [performed(self, item) for item in request.items]
            await context.write(load_pb2.AccessStreamResponse(items=answers))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the run is ending")

    (run,) = perform(Breaking(), job(iodepth=2, number=10))
    assert run.performed >= 1 and run.failed == "UNAVAILABLE: the run is ending"


def test_a_stream_that_ends_early_is_told() -> None:
    class Ending(FakeGuest):
        async def AccessStream(self, requests: Any, context: Any) -> None:
            await context.read()

    (run,) = perform(Ending(), job(iodepth=2, number=10))
    assert run.performed == 0 and run.failed == "the server ended the stream"


def test_a_guest_that_does_not_answer_is_not_awaited_for_ever() -> None:
    guest = FakeGuest(answer=lambda guest, item: None)
    (run,) = perform(guest, job(iodepth=3, number=10, timeout_s="0.3"))
    assert run.failed == "no answer for timeout_s = 0.3; 3 accesses are waiting"
    assert run.unanswered == 3


def test_several_jobs_at_once_and_the_report_of_them() -> None:
    guest = FakeGuest()
    runs = perform(
        guest,
        job(name="readers", iodepth=4, number=100),
        job(name="writers", pattern="zipf", rate=1000, number=100, write_percent=100),
    )
    assert [run.performed for run in runs] == [100, 100]
    kinds = Counter(access.kind for access in guest.seen)
    assert kinds == {Access.ACCESS_READ: 100, Access.ACCESS_WRITE: 100}
    shown = io.StringIO()
    load_report.show(Console(file=shown, width=160), runs)
    text = shown.getvalue()
    assert "readers: random on process mem" in text and "hit 100 (100.00 %)" in text
    assert "wall time, from when due" in text and "sent late by" in text
    document = load_report.document("a", runs)
    assert document["jobs"]["writers"]["late"]["count"] == 100 and "late" not in document["jobs"]["readers"]


def test_a_duration_ends_a_closed_loop() -> None:
    (run,) = perform(FakeGuest(), job(iodepth=4, duration_s="0.2"))
    assert run.performed == run.sent > 0 and not run.failed and run.unanswered == 0


def test_ctrl_c_ends_a_job_with_what_it_has() -> None:
    def answer(guest: FakeGuest, item: Any) -> Any:
        if item.id == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return performed(guest, item)

    guest = FakeGuest(answer)
    (run,) = perform(guest, job(iodepth=4, duration_s=1000))
    assert run.performed == run.sent >= 20 and not run.failed


@pytest.mark.parametrize(
    ("process", "named"),
    [
        ("other", "no such process in the guest; there are 1 (init), 2 (mem)"),
        (7, "process = 7: no such process"),
        (1, "process = 1: has no memory"),
    ],
)
def test_a_process_that_is_not_there_is_named(process: object, named: str) -> None:
    with pytest.raises(BadInput, match="process") as caught:
        perform(FakeGuest(), job(process=process, iodepth=1, number=1))
    assert named in str(caught.value)


# Jobs. ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "iodepth = None, rate = None: one of the two"),
        ({"iodepth": 1, "rate": 1}, "one of the two"),
        ({"iodepth": 1}, "duration_s and number are both missing"),
        ({"iodepth": 0, "number": 1}, "iodepth = 0: input should be greater than or equal to 1"),
        ({"iodepth": 1025, "number": 1}, "iodepth = 1025: input should be less than or equal to 1024"),
        ({"iodepth": 4, "batch": 5, "number": 1}, "batch = 5: at most iodepth, which is 4"),
        ({"rate": -1, "number": 1}, "rate = -1: input should be greater than 0"),
        ({"iodepth": 1, "number": 1, "length": 12}, "length = 12: input should be a multiple of 8"),
        ({"iodepth": 1, "number": 1, "length": "1GiB"}, "length = '1GiB': input should be less"),
        ({"iodepth": 1, "number": 1, "pattern": "linear"}, "pattern = 'linear': input should be 'random'"),
        ({"iodepth": 1, "number": 1, "theta": 0.5}, "theta = 0.5: only with pattern = 'zipf'"),
        ({"iodepth": 1, "number": 1, "arrivals": "constant"}, "arrivals = 'constant': only with rate"),
        ({"iodepth": 1, "number": 1, "depth": 1}, "depth: no such field; allowed: name, process, pattern"),
        ({"iodepth": 1, "number": 1, "write_percent": 101}, "write_percent = 101"),
        ({"iodepth": 1, "number": 1, "duration_s": "soon"}, "duration_s = 'soon'"),
        ({"iodepth": 1, "number": 1, "process": 0}, "process = 0"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput) as caught:
        job(**fields)
    assert named in str(caught.value)


def test_a_missing_process_is_named() -> None:
    with pytest.raises(BadInput, match=r"^process: missing$"):
        make_job({"iodepth": 1, "number": 1})


def test_a_job_file(tmp_path: Any) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(
        'seed = 7\n[defaults]\nprocess = "mem"\nduration_s = 1.5\niodepth = 4\n'
        '[job.readers]\n[job.hot]\npattern = "zipf"\nrate = 500\narrivals = "constant"\n'
    )
    readers, hot = load_jobs(path)
    assert (readers.name, readers.seed, readers.iodepth, readers.rate) == ("readers", 7, 4, None)
    assert (hot.name, hot.seed, hot.iodepth, hot.rate, str(hot.duration_s)) == ("hot", 8, None, 500, "1.5")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = 1", "x: no such field; allowed: seed, defaults, job"),
        ("", "job: 0 jobs; 1 to 64"),
        ("[job.a]\nprocess = 'm'\nnumber = 1\niodepth = 'many'", "job.a.iodepth = 'many'"),
        ("[job.a]\nprocess = 'm'\niodepth = 1", "job.a.duration_s and number are both missing"),
        ("job = 1", "job = 1: expected a table"),
        ("seed = 'x'\n[job.a]", "seed = 'x': expected a whole number"),
        ("= 1", "not TOML"),
    ],
)
def test_a_job_file_that_is_wrong(tmp_path: Any, text: str, named: str) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        load_jobs(path)
    assert named in str(caught.value)


def test_a_job_file_that_is_not_there(tmp_path: Any) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load_jobs(tmp_path / "none.toml")


def closed(**fields: Any) -> Job:
    return job(iodepth=1, number=1, **fields)


def test_pages_stay_in_their_range() -> None:
    chosen = closed(first_page=10, pages=20, length="8KiB")
    assert page_range(chosen, 100) == (10, 19)
    pages = {page for page, _ in islice(accesses(chosen, 100), 2000)}
    assert pages == set(range(10, 29))


def test_sequential_goes_round() -> None:
    pages = [page for page, _ in islice(accesses(closed(pattern="sequential", first_page=2, pages=3), 100), 7)]
    assert pages == [2, 3, 4, 2, 3, 4, 2]


def test_zipf_follows_its_law() -> None:
    count, drawn = 100, 200_000
    found = Counter(page for page, _ in islice(accesses(closed(pattern="zipf", theta=1.2), count), drawn))
    weights = np.arange(1, count + 1) ** -1.2
    wanted = drawn * weights / weights.sum()
    assert [n for _, n in found.most_common(5)] == pytest.approx(wanted[:5], rel=0.05)
    assert set(found) <= set(range(count))


def test_the_same_seed_draws_the_same() -> None:
    chosen = closed(pattern="zipf", write_percent=30, seed=5)
    assert list(islice(accesses(chosen, 50), 100)) == list(islice(accesses(chosen, 50), 100))
    assert list(islice(accesses(chosen, 50), 100)) != list(
        islice(accesses(closed(seed=6, write_percent=30), 50), 100)
    )
    share = sum(write for _, write in islice(accesses(chosen, 50), 20_000)) / 20_000
    assert share == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "pages", "named"),
    [
        ({"first_page": 5, "pages": 10}, 12, "pages = 10, first_page = 5: the process has 12 pages"),
        ({"first_page": 12}, 12, "first_page = 12"),
        ({"length": "8KiB"}, 1, "an access takes 2 pages"),
        ({"pattern": "zipf"}, 1 << 25, "at most 16777216 with pattern = 'zipf'"),
    ],
)
def test_a_range_that_does_not_fit_is_named(fields: dict[str, Any], pages: int, named: str) -> None:
    with pytest.raises(BadInput) as caught:
        page_range(closed(**fields), pages)
    assert named in str(caught.value)


def test_arrivals_have_their_rate() -> None:
    constant = list(islice(arrivals(job(rate=1000, arrivals="constant", number=1)), 4))
    assert constant == [0, 1_000_000, 2_000_000, 3_000_000]
    poisson = list(islice(arrivals(job(rate=1000, number=1, batch=2)), 20_000))
    gaps = np.diff(poisson)
    assert gaps.mean() == pytest.approx(2_000_000, rel=0.03) and gaps.std() == pytest.approx(2_000_000, rel=0.05)


def test_latencies_of_nothing_and_of_too_much() -> None:
    nothing = Latencies()
    assert nothing.percentiles() == {} and nothing.document()["histogram"] == []
    nothing.record(HIGHEST_NS * 5)
    nothing.record(0)
    assert nothing.max_ns == HIGHEST_NS * 5 and nothing.count == 2
    assert nothing.percentiles()["p99.99"] >= HIGHEST_NS
