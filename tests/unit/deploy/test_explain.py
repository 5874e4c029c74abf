"""``apf explain``: the story of a fault is whole and in order, the right one is chosen, and who waits is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import all_of, recorded
from rich.console import Console

from apf.process import EXIT_BAD_INPUT
from apf.scenario import ApfName, ScenarioError
from deploy import explain, recording
from deploy.cli import app
from deploy.explain import Choice
from deploy.fault import Fault
from deploy.recording import RecordedRun, Recorder
from tests.commands import Commands

TOKEN = 0x21E001
GOLDEN: dict[ApfName, int] = {"pv2010": TOKEN, "pv": 0x21F001, "halt": 0x21F000}
"""``explained-MODE.txt`` is what ``told_of`` gives of this token."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return recorded(tmp_path_factory.mktemp("run"))


def told_of(run: RecordedRun, choice: Choice) -> str:
    out = io.StringIO()
    explain.show_fault(Console(file=out, width=110), explain.explain(run, choice))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("mode", GOLDEN)
def test_a_fault_in_words(mode: ApfName, tmp_path: Path) -> None:
    told = told_of(recorded(tmp_path, mode), Choice(token=GOLDEN[mode]))
    assert told == Path(__file__).with_name(f"explained-{mode}.txt").read_text()


def test_a_fault_on_a_missing_page_is_a_userfaultfds(tmp_path: Path) -> None:
    changes = {"apf": ["pv"], "duration_s": "0.01", "swap.device": "nvme", "vm.backing": "userfault"}
    read = all_of(recorded(tmp_path, **changes))
    asked = [fault for fault in read.faults if fault.kind == "async" and fault.own_read]
    assert asked and all(fault.read is not None and fault.read.fetched for fault in asked)
    steps = read.tell(asked[0])
    assert any("finds the page missing, tells nobody" in step.text for step in steps)
    (work,) = [step for step in steps if step.what == "work"]
    assert "handle_userfault" in work.functions and "A handler of the VM's userfaultfd is told" in work.text


@pytest.mark.parametrize(
    ("gup", "mode", "what", "text"),
    [
        ("noio", "pv", "read by itself", "The vCPU thread reads the page itself, in "),
        ("nowait", "off", "read by itself", "The vCPU thread reads the page itself, in "),
        ("fast", "pv", "gup", "get_user_pages_fast() finds a swap entry, looks no further and does not succeed."),
    ],
)
def test_a_fault_on_a_page_of_a_synchronous_device(gup: str, mode: str, what: str, text: str, tmp_path: Path) -> None:
    run = recorded(tmp_path, apf=[mode], duration_s="0.002", gup=gup, **{"swap.device": "zram"})
    fault = next(fault for fault in all_of(run).faults if fault.own_read)
    assert fault.kind == ("async" if gup == "fast" else "major")
    steps = explain.explain(run, Choice(nth=fault.serial)).steps
    (step,) = [step for step in steps if step.what == what]
    assert step.text.startswith(text)
    assert not any("sleeps for" in step.text or "needs I/O" in step.text for step in steps)
    if what == "read by itself":
        assert step.functions[0] == "do_swap_page" and f"{fault.stall_ns:,} ns" in step.text


def test_a_fault_on_a_page_that_the_vcpu_could_not_read_itself(tmp_path: Path) -> None:
    fails = {"swap.device": "zram", "swap.fault": [{"what": "read_error"}]}
    run = recorded(tmp_path, apf=["pv"], duration_s="0.002", **fails)
    fault = next(fault for fault in all_of(run).faults if fault.kind == "async")
    told = " ".join(step.text for step in explain.explain(run, Choice(nth=fault.serial)).steps)
    assert "get_user_pages_noio() finds a swap entry, reads the page in vain and so does not succeed." in told


@pytest.mark.parametrize(
    ("choice", "of"),
    [
        (Choice(nth=3), lambda faults: sorted(faults, key=lambda f: f.serial)[2]),
        (Choice(longest=True), lambda faults: max(faults, key=lambda f: (f.latency_ns or 0, -f.serial))),
        (Choice(token=TOKEN), lambda faults: next(f for f in faults if f.token == TOKEN)),
    ],
)
def test_the_fault_that_was_asked_for(run: RecordedRun, choice: Choice, of: Callable[[list[Fault]], Fault]) -> None:
    faults = all_of(run).faults
    explained = explain.explain(run, choice)
    assert explained.fault == of(faults)
    assert explained.among == (1 if choice.token else len(faults))


def test_faults_of_one_page(run: RecordedRun) -> None:
    faults = all_of(run).faults
    gfn = next(f.gfn for f in faults if f.kind == "async" and sum(other.gfn == f.gfn for other in faults) > 2)
    mine = sorted((f for f in faults if f.gfn == gfn), key=lambda f: f.serial)
    for number, fault in enumerate(mine, start=1):
        explained = explain.explain(run, Choice(gfn=gfn, nth=number))
        assert explained.fault == fault and explained.among == len(mine)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(token=0x99), "--token 0x99: no such fault with number 1; there are 0"),
        (Choice(vm=1), "--vm 0x1: no such fault with number 1; there are 0"),
        (Choice(nth=10**6), "of all faults: no such fault with number 1000000; there are "),
    ],
)
def test_there_is_no_such_fault(run: RecordedRun, choice: Choice, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        explain.explain(run, choice)


def test_the_summary_counts_what_the_run_counted(run: RecordedRun) -> None:
    out = io.StringIO()
    summary = explain.summarize(run)
    explain.show_summary(Console(file=out, width=110), run, summary)
    assert [fault.latency_ns for fault in summary.slowest] == sorted(
        (fault.latency_ns for fault in all_of(run).faults if fault.latency_ns is not None), reverse=True
    )[:5]
    assert f"{summary.histograms['latency_async'].sum_ns:,}" in out.getvalue()
    assert f"--token {summary.slowest[0].token:#x}" in out.getvalue()


def test_a_recording_must_be_whole(run: RecordedRun, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no recording"):
        recording.read(tmp_path)
    with pytest.raises(ScenarioError, match="a directory that is new or empty"):
        Recorder(next(iter(run.journals.values())).parent)
    (tmp_path / "recording.json").write_text("{}")
    with pytest.raises(ScenarioError, match="not what --record writes: 'format'"):
        recording.read(tmp_path)
    (tmp_path / "recording.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ScenarioError, match="format 2; this reads format 1"):
        recording.read(tmp_path)


def test_a_recording_that_was_changed_is_refused(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    with run.journals["vcpu-0-1"].open("a") as journal:
        journal.write("1 exit EPT_VIOLATION 2\n")
    with pytest.raises(ScenarioError, match=f"but {run.digest} was recorded"):
        recording.read(tmp_path / "recording")


def command(*arguments: str) -> int:
    return int(app(list(arguments), standalone_mode=False) or 0)


def test_the_commands(tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    recording, trace, again, cut = (str(tmp_path / name) for name in ("recording", "trace", "again", "cut"))
    sizes = ("--guest-memory", "96MiB", "--group-memory", "4MiB", "--buffer", "32MiB", "--vcpus", "2")
    bench = ("bench", "--twin", "--device", "nvme", "--duration", "0.003", *sizes)
    kept = ("--record", recording, "--trace", trace)
    done = commands.run(*bench, *kept)
    assert done.returncode == 0, done.stderr
    assert f"apf: recorded in {recording}" in done.stderr
    assert "events, 0 MiB; open it at ui.perfetto.dev" in done.stderr
    assert command("trace", recording, again) == 0
    assert Path(again).read_bytes() == Path(trace).read_bytes()
    assert command("trace", recording, cut, "--trace-limit", "4KiB") == 0
    said = capsys.readouterr().err
    assert "the limit was reached at " in said and "events are left out" in said
    assert command("explain", recording, "--apf", "pv2010", "--longest") == 0
    assert "kvm_async_pf_task_wait" in capsys.readouterr().out
    assert command("explain", recording, "--apf", "off") == 0
    assert "latency major" in capsys.readouterr().out
    assert command("explain", recording, "--apf", "pv2010", "--stuck") == 0
    assert "page ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "{run}", "--apf", "nope"), "--apf = nope: the recording has pv2010"),
        (("explain", "{run}", "--token", "x"), "--token = 'x': a number, as 4097 or 0x1001"),
        (("explain", "{run}", "--nth", "2", "--longest"), "--nth and --longest: one of them"),
        (("explain", "/nowhere"), "/nowhere: no recording"),
        (("trace", "{run}", "/nowhere/file"), "/nowhere/file: No such file or directory"),
        (("trace", "{run}", "{run}/../t", "--trace-limit", "0"), "--trace-limit = '0': greater than 0"),
        (
            ("trace", "{run}", "{run}/../t", "--trace-limit", "big"),
            "--trace-limit = 'big': expected a number of bytes",
        ),
        (("bench", "--record", "{run}"), "--record = {run}: a directory that is new or empty"),
    ],
)
def test_bad_input(
    run: RecordedRun, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(next(iter(run.journals.values())).parent.parent)
    assert command(*(one.replace("{run}", directory) for one in arguments)) == EXIT_BAD_INPUT
    assert message.replace("{run}", directory) in capsys.readouterr().err
