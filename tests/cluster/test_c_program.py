"""Programs in C, compiled here with the flags that the header names: what they compute is what the host computes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from guest_runs import Ran, Table, alike, guests, on_twin, same
from load_runs import replays, under_load

GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="no gcc: a C program cannot be compiled")

SOURCES = Path(__file__).parent / "c"
HEADER = Path(str(files("guestsched.programs").joinpath("apf_guest.h")))
Checksums = Callable[[int], list[int]]
PAGES = 600
"""Of each of two instances: 4.7 MiB together, where the memory group has 4 for everything."""


def gcc(*arguments: str | Path) -> None:
    done = subprocess.run([str(GCC), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def guest_program(name: str, directory: Path) -> str:
    """Compile a program as the header says, but with -O3; returns the file."""
    command = re.search(r"gcc (.*) -o hello", HEADER.read_text())
    assert command is not None, "the header says how to compile"
    flags = command[1].replace("-O2", "-O3").replace("<directory of this file>", str(HEADER.parent)).split()
    gcc(*flags, "-Wall", "-Werror", "-o", directory / f"{name}.elf", SOURCES / f"{name}.c")
    return str(directory / f"{name}.elf")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> str:
    return guest_program("numbers", tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Checksums:
    """The host's checksums of instances 0 and 1."""
    program = tmp_path_factory.mktemp("native") / "numbers"
    gcc("-O3", "-DNATIVE", "-Wall", "-o", program, SOURCES / "numbers.c")

    def run(rounds: int) -> list[int]:
        commands = ([program, str(instance), str(PAGES), str(rounds)] for instance in range(2))
        return [int(subprocess.check_output(command, text=True, timeout=60)) for command in commands]

    return run


def two(program: str, layout: str, rounds: int) -> Table:
    """Two instances on vCPU 0: of one address space, or a process each."""
    thread: dict[str, Any] = {"program": program, "args": [PAGES, rounds], "vcpus": [0]}
    if layout == "threads":
        return {"name": "numbers", "thread": [{**thread, "count": 2}]}
    return {"name": "numbers", "count": 2, "thread": [thread]}


def check(ran: Ran, checksums: list[int], layout: str) -> None:
    expected = checksums if layout == "threads" else checksums[:1] * 2
    rows = ran.tasks("numbers.elf")
    assert [(row["state"], row["status"], row["killed"]) for row in rows] == [("DEAD", 0, "")] * 2
    assert [row["counted"] for row in rows] == expected
    assert [row["vcpu"] for row in rows] == [0, 0]
    assert len(ran.result.told) == 2 and all(line.endswith(": done") for line in ran.result.told)
    kind = "faults_async" if ran.result.mode == "pv2010" else "faults_major"
    assert ran.result.counter(kind) > PAGES, "it did not fit"
    assert all(row["min_flt"] >= PAGES for row in rows)


def test_the_host_computes_something(native: Checksums) -> None:
    assert len({*native(1), *native(2)}) == 4


@pytest.mark.parametrize(("apf", "layout"), [("off", "processes"), ("pv2010", "threads")])
def test_doubles_under_eviction(apf: str, layout: str, numbers: str, native: Checksums, tmp_path: Path) -> None:
    scenario = guests(apf, two(numbers, layout, rounds=1), vm__vcpus=1, duration_s=2)
    ran = alike(scenario, tmp_path / "one")
    check(ran, native(1), layout)
    same(ran, on_twin(scenario, tmp_path / "again"))


@pytest.mark.parametrize(("apf", "layout"), [("off", "threads"), ("pv2010", "processes")])
@pytest.mark.parametrize("policy", ["cfs", "eevdf", "rr"])
def test_doubles_on_the_twin(
    apf: str, layout: str, policy: str, numbers: str, native: Checksums, tmp_path: Path
) -> None:
    """The scheduler changes when, never what."""
    scenario = guests(apf, two(numbers, layout, rounds=2), sched__policy=policy, duration_s=2)
    check(on_twin(scenario, tmp_path), native(2), layout)


def test_a_privileged_instruction_ends_its_task_and_no_other(tmp_path: Path) -> None:
    bad = guest_program("privileged", tmp_path)
    good = {"program": guest_program("numbers", tmp_path), "args": [50, 1], "vcpus": [0]}
    scenario = guests(
        "pv2010",
        {"name": "bad", "thread": [{"program": bad, "vcpus": [0]}]},
        {"name": "good", "thread": [good]},
        duration_s="0.02",
    )
    ran = alike(scenario, tmp_path / "journals")
    (killed,), (other,) = ran.tasks("privileged.elf"), ran.tasks("numbers.elf")
    assert killed["state"] == "DEAD" and killed["counted"] == 7, "what it did before is done"
    assert re.search(r"#GP|general protection|privileged", killed["killed"])
    assert "privileged.elf" in ran.result.told[0] and killed["killed"] in ran.result.told[0]
    assert (other["state"], other["status"], other["killed"]) == ("DEAD", 0, "") and other["counted"]


def test_a_program_that_comes_through_the_api(tmp_path: Path) -> None:
    """It says what it was given: no arguments, and which instance it is."""
    program = guest_program("instance", tmp_path)
    loaded = under_load(guests("pv2010", {"access_threads": 1}, duration_s=0), tmp_path, "elf", program, "1")
    assert loaded.said["tasks"] == [["DEAD", 7, 100], ["DEAD", 8, 101]]
    replays(loaded)
