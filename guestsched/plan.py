"""Plans of processes (``core.process.ProcessPlan``): what programs, memory and arguments make a process.

An address space, from below:

    as linked         the segments of an ELF program
    CODE_GVA ..       code of built-in programs, a megabyte each
    PAGE_GVA ..       pages of tasks or pairs of tasks: counters, rings
    TABLE_GVA ..      read-only tables of programs
    MEMORY_GVA ..     the process's memory: what built-in programs, traces and outside load access
    MAP_GVA ..        what tasks map (``core.process``)
    STACK_END_GVA     below it, the stacks of ELF tasks

Stamps: with n tasks that verify what they write, task i's stamp word in page p of the memory has the tag
i + 1 + n * p in its high half: no two are alike, none is 0.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from apf import registers as register_file
from apf.chance import stream_key
from apf.messages import CHECK_MULTIPLIER, NEVER_NS, PAGE_SHIFT, PAGE_SIZE, Account, Stamp
from apf.scenario import Scenario, ScenarioError
from apf.workload import Process as ProcessTable
from guestsched.core.process import ProcessPlan, Region, Symbol
from guestsched.core.task import AccessList, TaskSpec
from guestsched.elf import ElfProgram, load_elf
from guestsched.programs import BUILTINS, BuiltIn
from guestsched.trace import TraceList, read_trace

CODE_GVA = 0x40_0000
CODE_STEP = 0x10_0000
PAGE_GVA = 0x1000_0000
TABLE_GVA = 0x2000_0000
TABLE_STEP = 0x1000_0000
MEMORY_GVA = 0x1_0000_0000
STACK_END_GVA = 0x7F00_0000_0000
STACK_PAGES = 64
STACK_STEP = 0x100_0000

STAMP_BYTES = 64
STAMPED_TASKS_MAX = PAGE_SIZE // STAMP_BYTES
_TAG_SHIFT = 32
_MASK = (1 << 64) - 1
_ACCESS_THREAD = "access_thread"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One task to be: what it runs, as which of those that run the same (``instance``), and how.

    ``program`` is a built-in program or an ELF program; ``trace`` the accesses of an access thread of its own.
    """

    program: BuiltIn | ElfProgram
    label: str
    instance: int
    parameters: Mapping[str, int] = field(default_factory=dict)
    args: tuple[int, ...] = ()
    nice: int = 0
    vcpus: tuple[int, ...] = ()
    start_ns: int = 0
    lifetime_ns: int = 0
    trace: AccessList | None = None
    digest: str = ""

    @property
    def stamped(self) -> bool:
        """Whether it verifies what it writes with stamps."""
        return isinstance(self.program, BuiltIn) and self.program.stamps


def vm_seed(seed: int, vm: int) -> int:
    """What VM ``vm`` of a host draws its chances from: no two do the same; the first goes by the scenario's seed."""
    return stream_key(seed, f"vm.{vm}") >> 1 if vm else seed


def plans(scenario: Scenario) -> tuple[ProcessPlan, ...]:
    """The processes of a VM at boot. Raises ScenarioError."""
    if not scenario.process:
        return (_bench(scenario),)
    made = []
    for table in scenario.process:
        for number in range(table.count):
            name = table.name if table.count == 1 else f"{table.name}/{number}"
            wanted = list(_wanted(table))
            made.append(plan(scenario.seed, name, wanted, table.memory >> PAGE_SHIFT, table.populate))
    return tuple(made)


def _bench(scenario: Scenario) -> ProcessPlan:
    """The published benchmark (2010): faulting and working threads of one process, thread i of each on vCPU i."""
    vcpus, bench = scenario.vm.vcpus, scenario.bench
    if bench.fault_threads > STAMPED_TASKS_MAX:
        raise ScenarioError(
            f"bench.fault_threads = {bench.fault_threads}: at most {STAMPED_TASKS_MAX}, for each has {STAMP_BYTES} "
            f"bytes of its own in every page of the buffer"
        )
    wanted = [
        Wanted(BUILTINS[name], name, index, vcpus=(index % vcpus,))
        for name, count in (("fault_thread", bench.fault_threads), ("work_thread", bench.work_threads))
        for index in range(count)
    ]
    return plan(scenario.seed, "bench", wanted, bench.buffer >> PAGE_SHIFT, bench.populate)


def _wanted(table: ProcessTable) -> Iterator[Wanted]:
    """The tasks of a process table."""
    instances: Counter[str] = Counter()
    pages = table.memory >> PAGE_SHIFT
    for thread in table.thread:
        elf = thread.elf
        trace: AccessList | None = None
        program: BuiltIn | ElfProgram
        if thread.trace:
            label, program = Path(thread.trace).name, BUILTINS[_ACCESS_THREAD]
            trace = TraceList(read_trace(Path(thread.trace), pages))
        elif elf is not None:
            label, program = elf.name, load_elf(elf)
        else:
            label, program = thread.program, builtin(thread.program, "process.thread.program")
            program.checked(thread.parameters)
        for _ in range(thread.count):
            yield Wanted(
                *(program, label, instances[label], thread.parameters, thread.args, thread.nice, thread.vcpus),
                start_ns=int(thread.start_s * 1_000_000_000),
                lifetime_ns=int(thread.lifetime_s * 1_000_000_000),
                trace=trace,
                digest=thread.sha256,
            )
            instances[label] += 1
    for instance in range(table.access_threads):
        yield Wanted(BUILTINS[_ACCESS_THREAD], _ACCESS_THREAD, instance)


def builtin(name: str, where: str) -> BuiltIn:
    """The built-in program ``name`` that a user asked for in ``where``. Raises ScenarioError."""
    names = [known for known in BUILTINS if known != _ACCESS_THREAD]
    if name not in names:
        raise ScenarioError(f"{where} = {name!r}: allowed: {', '.join(sorted(names))}, or the name of an ELF file")
    return BUILTINS[name]


def plan(seed: int, name: str, wanted: list[Wanted], memory_pages: int, populate: bool) -> ProcessPlan:
    """A process of these tasks, with ``memory_pages`` pages of memory if any task uses it. Raises ScenarioError."""
    return _Planner(seed, name, wanted, memory_pages, populate).plan()


class _Planner:
    """Lays out one process."""

    def __init__(self, seed: int, name: str, wanted: list[Wanted], memory_pages: int, populate: bool) -> None:
        self._seed = seed
        self._name = name
        self._wanted = wanted
        self._pages = memory_pages
        self._populate = populate
        self._regions: list[Region] = []
        self._symbols: list[Symbol] = []
        self._code: dict[str, int] = {}
        self._shared: dict[int, int] = {}
        self._tables: dict[bytes, int] = {}
        self._next_page_gva = PAGE_GVA
        self._stamps = self._make_stamps()

    def plan(self) -> ProcessPlan:
        self._verify()
        elves = list(dict.fromkeys(w.program for w in self._wanted if isinstance(w.program, ElfProgram)))
        for elf in elves:
            self._add_elf(elf)
        tasks = [self._task(index, wanted) for index, wanted in enumerate(self._wanted)]
        users = [w for w in self._wanted if isinstance(w.program, BuiltIn) and self._uses_memory(w.program)]
        if users:
            self._regions.append(Region(MEMORY_GVA, self._pages, stamps=self._stamps, demand_zero=not self._populate))
        self._verify_regions()
        memory = (MEMORY_GVA, self._pages) if users else (0, 0)
        made = ProcessPlan(self._name, tuple(self._regions), tuple(tasks), tuple(self._symbols), memory)
        return replace(made, digest=_digest(made, self._wanted))

    def _uses_memory(self, program: BuiltIn) -> bool:
        return program.stamps or program.name == _ACCESS_THREAD

    def _verify(self) -> None:
        names = Counter(w.program.name for w in self._wanted if isinstance(w.program, BuiltIn))
        if names["producer"] != names["consumer"]:
            raise ScenarioError(
                f"process {self._name}: {names['producer']} tasks run producer, {names['consumer']} run consumer: "
                f"as many of each, for they work in pairs"
            )
        if names[_ACCESS_THREAD] and self._stamps:
            raise ScenarioError(
                f"process {self._name}: access threads and traces, and programs that verify stamps: one or the other, "
                f"for they write to the same memory; use two processes"
            )
        shared = [w for w in self._wanted if isinstance(w.program, ElfProgram)]
        vcpus = {w.vcpus for w in shared}
        if len(shared) > 1 and (len(vcpus) > 1 or any(len(each) != 1 for each in vcpus)):
            raise ScenarioError(
                f"process {self._name}: {len(shared)} tasks run ELF programs in one address space, on vcpus = "
                f"{sorted(vcpus)}: all on the same one vCPU (vcpus = [0]), for atomics hold within one vCPU only; or "
                f"use a process for each"
            )

    def _verify_regions(self) -> None:
        end, before = 0, None
        for region in sorted(self._regions, key=lambda region: region.gva):
            if region.gva < end:
                raise ScenarioError(
                    f"process {self._name}: its ELF program has a segment at {region.gva:#x}, or one up to there, where "
                    f"{before.gva:#x} to {end:#x} is taken: link it elsewhere (-Wl,-Ttext-segment=0x40000000000)"
                    if before
                    else ""
                )
            end, before = region.gva + region.pages * PAGE_SIZE, region

    # Parts -----------------------------------------------------------------------------------------------------------

    def _make_stamps(self) -> tuple[Stamp, ...]:
        """One for each task that verifies. Raises ScenarioError if stamps overflow a page, or tags 32 bits."""
        tasks = sum(wanted.stamped for wanted in self._wanted)
        if tasks > STAMPED_TASKS_MAX:
            raise ScenarioError(
                f"process {self._name}: {tasks} tasks verify what they write: at most {STAMPED_TASKS_MAX}, for each has "
                f"{STAMP_BYTES} bytes of its own in every page of the memory"
            )
        if self._pages * tasks >= 1 << _TAG_SHIFT:
            raise ScenarioError(
                f"process {self._name}: {self._pages} pages times {tasks} tasks that verify what they write must be "
                f"less than 2**{_TAG_SHIFT}, for every stamp has a tag of its own"
            )
        stride = tasks << _TAG_SHIFT
        return tuple(Stamp(STAMP_BYTES * i, (i + 1) << _TAG_SHIFT, stride) for i in range(tasks))

    def _add_elf(self, elf: ElfProgram) -> None:
        for segment in elf.segments:
            self._regions.append(
                Region(
                    *(segment.gva, segment.pages, segment.data),
                    demand_zero=not segment.data,
                    writable=segment.writable,
                    executable=segment.executable,
                )
            )
        starts = [symbol.start for symbol in elf.symbols] + [1 << 63]
        label = next(w.label for w in self._wanted if w.program is elf)
        for symbol, following in zip(elf.symbols, starts[1:], strict=True):
            end = symbol.start + symbol.size if symbol.size else following
            self._symbols.append(Symbol(symbol.start, end, symbol.name, label))

    def _add_code(self, program: BuiltIn) -> int:
        """Code of a built-in program; returns its gva."""
        if program.name not in self._code:
            gva = CODE_GVA + len(self._code) * CODE_STEP
            self._code[program.name] = gva
            pages = -(-len(program.code) >> PAGE_SHIFT)
            self._regions.append(Region(gva, pages, program.code, writable=False, executable=True))
            self._symbols += _symbols(program, gva)
        return self._code[program.name]

    def _page(self) -> int:
        """A page of zeros."""
        gva = self._next_page_gva
        self._next_page_gva += PAGE_SIZE
        self._regions.append(Region(gva, 1, demand_zero=True))
        return gva

    def _table(self, program: BuiltIn, parameters: Mapping[str, int]) -> int:
        data = program.table_bytes(parameters, self._pages)
        if data not in self._tables:
            gva = self._tables[data] = TABLE_GVA + len(self._tables) * TABLE_STEP
            self._regions.append(Region(gva, -(-len(data) >> PAGE_SHIFT), data, writable=False))
        return self._tables[data]

    def _task(self, index: int, wanted: Wanted) -> TaskSpec:
        program = wanted.program
        ring = 0
        results: Mapping[str, str] = {}
        if isinstance(program, BuiltIn):
            values = self._arguments(index, wanted, program)
            registers = {register: values[name] for name, register in program.arguments.items()}
            rip, account, results = self._add_code(program), program.account, program.results
            ring = values["ring"] if program.name == _ACCESS_THREAD else 0
        else:
            registers = self._elf_registers(index, wanted)
            rip, account = program.entry, Account.OTHER
        return TaskSpec(
            name=f"{wanted.label}/{wanted.instance}",
            program=wanted.label,
            account=account,
            registers=register_file.new(rip=rip, **registers),
            results=tuple(results.items()),
            nice=wanted.nice,
            vcpus=tuple(sorted(set(wanted.vcpus))),
            start_ns=wanted.start_ns,
            lifetime_ns=min(wanted.lifetime_ns, NEVER_NS),
            ring=ring,
            trace=wanted.trace,
        )

    def _elf_registers(self, index: int, wanted: Wanted) -> dict[str, int]:
        """As the header says: entered as if called, instance and arguments in RDI, RSI, RDX."""
        end = STACK_END_GVA - index * STACK_STEP
        self._regions.append(Region(end - STACK_PAGES * PAGE_SIZE, STACK_PAGES, demand_zero=True))
        first, second = (*wanted.args, 0, 0)[:2]
        return {"rsp": end - 8, "rdi": wanted.instance, "rsi": first & _MASK, "rdx": second & _MASK}

    def _arguments(self, index: int, wanted: Wanted, program: BuiltIn) -> dict[str, int]:
        """Every argument the program names."""
        values = program.argument_values(wanted.parameters, self._pages)
        names = program.arguments
        if "multiplier" in names:
            values["multiplier"] = CHECK_MULTIPLIER
        if program.stamps:
            stamp = self._stamps[sum(other.stamped for other in self._wanted[:index])]
            values |= {
                "buffer": MEMORY_GVA + stamp.offset,
                "pages": self._pages,
                "rng_seed": stream_key(self._seed, f"guest.{self._name}.{wanted.label}.{wanted.instance}") or 1,
                "stamp_base": stamp.base,
                "stamp_stride": stamp.stride,
                "zero_ok": int(not self._populate),
            }
        if "table" in names:
            values["table"] = self._table(program, wanted.parameters)
        if "counter" in names:
            values["counter"] = self._page()
        if program.shared_page:
            if wanted.instance not in self._shared:
                self._shared[wanted.instance] = self._page()
            values |= {
                "ring": self._shared[wanted.instance],
                "items": 2 * wanted.instance,
                "room": 2 * wanted.instance + 1,
            }
        elif "ring" in names:
            values["ring"] = self._page()
        return values


def _symbols(program: BuiltIn, gva: int) -> list[Symbol]:
    """Functions of a built-in program: labels that do not extend another label's name, which are places inside it."""
    labels = sorted(program.symbols.items(), key=lambda item: item[1])
    functions = [
        (name, offset)
        for name, offset in labels
        if not any(name.startswith(f"{other}_") for other, _ in labels if other != name)
    ]
    ends = [offset for _, offset in functions[1:]] + [len(program.code)]
    return [
        Symbol(gva + offset, gva + end, name, program.name)
        for (name, offset), end in zip(functions, ends, strict=True)
    ]


def _digest(made: ProcessPlan, wanted: list[Wanted]) -> str:
    """Of everything that makes the process."""
    whole = hashlib.blake2b(digest_size=8)
    for region in made.regions:
        whole.update(f"{region.gva} {region.pages} {region.writable} {region.executable}\n".encode())
        whole.update(region.data)
    for task, each in zip(made.tasks, wanted, strict=True):
        whole.update(
            f"{task.name} {task.nice} {task.vcpus} {task.start_ns} {task.lifetime_ns} {each.digest}".encode()
        )
        whole.update(task.registers)
    return whole.hexdigest()
