"""``apf spawn``, ``apf kill``, ``apf inject`` and ``apf list``: one call each of the running guest's API.

``apf io-fault``: one of hostd's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apf.fields import parse_size
from apf.v1 import host_pb2, load_pb2
from deploy import client
from deploy.clusters import BadInput

_U64 = 1 << 64


@dataclass(frozen=True, slots=True)
class SpawnOptions:
    """A process to make, as asked for on the command line. ``memory`` with a unit, ``lifetime`` in guest s."""

    process: str = ""
    program: str = ""
    elf: Path | None = None
    threads: int | None = None
    access_threads: int = 0
    memory: str = "0"
    nice: int = 0
    vcpus: str = ""
    parameters: tuple[str, ...] = ()
    lifetime: str = "0"


def spawn_request(options: SpawnOptions) -> load_pb2.SpawnRequest:
    """The request. Raises BadInput for what is wrong without asking the guest."""
    if options.program and options.elf is not None:
        raise BadInput(f"--program = {options.program}, --elf = {options.elf}: one of the two")
    runs = bool(options.program) or options.elf is not None
    threads = options.threads if options.threads is not None else int(runs)
    if not runs and threads:
        raise BadInput(f"--threads = {threads}: needs --program or --elf, which they run")
    try:
        elf = options.elf.read_bytes() if options.elf is not None else b""
    except OSError as error:
        raise BadInput(f"--elf = {options.elf}: {error.strerror}") from error
    return load_pb2.SpawnRequest(
        name=options.process,
        program=options.program,
        elf=elf,
        threads=_within("--threads", threads, 0, 65536),
        access_threads=_within("--access-threads", options.access_threads, 0, 65536),
        memory=_size("--memory", options.memory),
        nice=_within("--nice", options.nice, -20, 19),
        vcpus=[_number("--vcpus", word) for word in options.vcpus.split(",") if word.strip()],
        parameters=dict(_parameter(each) for each in options.parameters),
        lifetime_ns=_nanoseconds("--lifetime", options.lifetime),
    )


def _within(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise BadInput(f"{field} = {value}: {low} to {high}")
    return value


def _number(field: str, text: str, below: int = 1 << 32) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < below:
        raise BadInput(f"{field} = {text!r}: expected whole numbers from 0 to {below - 1}")
    return value


def _parameter(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput(f"--parameter = {text!r}: expected NAME=NUMBER")
    return name, _number(f"--parameter {name}", value, _U64)


def _size(field: str, text: str) -> int:
    try:
        value = parse_size(text)
    except ValueError as error:
        raise BadInput(f"{field} = {text!r}: {error}") from error
    assert isinstance(value, int)
    if value >= _U64:
        raise BadInput(f"{field} = {text!r}: less than 2^64 bytes")
    return value


def _nanoseconds(field: str, text: str) -> int:
    try:
        value = int(Decimal(text) * 1_000_000_000)
    except (InvalidOperation, ValueError, OverflowError):
        value = -1
    if not 0 <= value < _U64:
        raise BadInput(f"{field} = {text!r}: expected seconds, 0 or more")
    return value


def spawn(address: str, options: SpawnOptions, console: Console) -> None:
    """Make a process and print its numbers. Raises BadInput or Failure."""
    request = spawn_request(options)
    with client.load_service(address) as service:
        made = service.Spawn(request, timeout=client.CALL_S)
    console.print(
        f"process {made.process}, tasks {_ranges(made.tasks)}, started at {made.started_ns / 1e9:.6f} s of guest time",
        highlight=False,
        soft_wrap=True,
    )


def kill(address: str, process: str, task: int, console: Console) -> None:
    """End a process (by number or name), or one task of it. Raises BadInput or Failure."""
    number, name = process_of(process)
    request = load_pb2.KillRequest(process=number, process_name=name, task=_within("--task", task, 0, (1 << 32) - 1))
    with client.load_service(address) as service:
        ended = service.Kill(request, timeout=client.CALL_S).tasks
    console.print(f"tasks {_ranges(ended)} will end" if ended else "all had ended before", highlight=False)


def inject(address: str, what: str, vcpu: int, nth: int, count: int, length: str, console: Console) -> None:
    """Spoil the APF protocol of a vCPU; ``length`` in guest s. Raises BadInput or Failure."""
    request = load_pb2.InjectRequest(
        what=what,
        vcpu=_within("--vcpu", vcpu, 0, (1 << 32) - 1),
        nth=_within("--nth", nth, 1, 1 << 32),
        count=_within("--count", count, 1, 1 << 32),
        for_ns=_nanoseconds("--for", length),
    )
    with client.load_service(address) as service:
        at_ns = service.Inject(request, timeout=client.CALL_S).at_ns
    console.print(f"{what} on vCPU {vcpu} from {at_ns / 1e9:.9f} s of guest time on", highlight=False)


@dataclass(frozen=True, slots=True)
class IoFaultOptions:
    """What ``apf io-fault`` was asked for; ``length`` and ``add`` in guest s; None: not given."""

    what: str
    nth: int | None = None
    count: int | None = None
    vm: int | None = None
    gfn: str | None = None
    slot: int | None = None
    io: str | None = None
    factor: int | None = None
    length: str = "0"
    add: str = "0"


def io_fault(address: str, options: IoFaultOptions, console: Console) -> None:
    """Let the swap device of a host fail. Raises BadInput or Failure."""
    numbers: dict[str, int | None] = {
        "nth": options.nth,
        "count": options.count,
        "vm": options.vm,
        "gfn": None if options.gfn is None else _number("--gfn", options.gfn, 1 << 63),
        "slot": options.slot,
        "factor": options.factor,
    }
    request = host_pb2.InjectIoFaultRequest(
        what=options.what,
        for_ns=_nanoseconds("--for", options.length),
        add_ns=_nanoseconds("--add", options.add),
        io=options.io,
    )
    for name, value in numbers.items():
        if value is not None:
            setattr(request, name, _within(f"--{name}", value, 0, (1 << 32 if name == "vm" else _U64) - 1))
    with client.host_service(address) as service:
        at_ns = service.InjectIoFault(request, timeout=client.CALL_S).at_ns
    console.print(f"{options.what} from {at_ns / 1e9:.9f} s of guest time on", highlight=False)


def process_of(text: str) -> tuple[int, str]:
    """``"3"`` is process number 3, anything else a name: (number, name), of which one is set. Raises BadInput."""
    if text.isdecimal():
        number = _number("--process", text)
        if number:
            return number, ""
    if not text or text.isdecimal():
        raise BadInput(f"--process = {text!r}: expected the number of a process, from 1, or its name")
    return 0, text


def _ranges(numbers: Sequence[int]) -> str:
    """``1-4, 7`` for 1, 2, 3, 4, 7."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans) or "none"


def show_list(address: str, console: Console) -> None:
    """Print all processes and their tasks. Raises Failure."""
    with client.load_service(address) as service:
        listed = service.List(load_pb2.ListRequest(), timeout=client.CALL_S)
    processes = Table("process", "name", "address", "pages", "tasks", "queued")
    tasks = Table("task", "process", "name", "program", "state", "vcpu", "nice", "cpu s", "nvcsw", "nivcsw")
    for heading in ("min_flt", "maj_flt", "counted", "ended"):
        tasks.add_column(heading)
    for column in tasks.columns[5:13]:
        column.justify = "right"
    for process in listed.processes:
        where = f"{process.address:#x}" if process.address else "-"
        alive = sum(task.state != "DEAD" for task in process.tasks)
        shown = f"{alive} of {len(process.tasks)}"
        processes.add_row(str(process.process), process.name, where, f"{process.pages:,}", shown, str(process.queued))
        for task in process.tasks:
            end = task.killed or (f"status {task.status}" if task.state == "DEAD" else "")
            numbers = (task.nvcsw, task.nivcsw, task.min_flt, task.maj_flt, task.counted)
            cells = (
                str(task.task),
                process.name,
                task.name,
                task.program,
                task.state,
                str(task.vcpu),
                str(task.nice),
            )
            tasks.add_row(*cells, f"{task.sum_exec_ns / 1e9:.6f}", *(f"{number:,}" for number in numbers), end)
    console.print(f"guest time {listed.now_ns / 1e9:.6f} s", highlight=False)
    console.print(processes)
    console.print(tasks)
