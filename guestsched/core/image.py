"""The VM at boot: what its memory holds, which address spaces and which tasks there are.

The published benchmark (2010): faulting threads that touch random pages of one big buffer, and working threads that
count, all of one process, all of equal weight. Faulting thread i and working thread i start on vCPU i (mod vCPUs).

Guest-physical memory, in frames:

    0                       never used
    1 .. vcpus              per-CPU pages; a vCPU's reason word is at the start of its own
    then                    program code, a program after the other
    then                    a counter page for each working thread
    GUEST_KERNEL_BYTES ..   the buffer

Stamps: with n faulting threads, thread i's stamp word in page p has the tag i + 1 + n * p in its high half: no two
are alike, none is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apf.chance import stream_key
from apf.messages import (
    CHECK_MULTIPLIER,
    PAGE_SHIFT,
    PAGE_SIZE,
    Account,
    AddressSpace,
    Extent,
    Segment,
    Stamp,
)
from apf.scenario import GUEST_KERNEL_BYTES, Scenario, ScenarioError
from guestsched.core.program import LoadedProgram
from guestsched.core.task import TaskSpec

PER_CPU_GFN = 1
BENCH_ASID = 1
CODE_GVA = 0x40_0000
CODE_GVA_STEP = 0x10_0000
COUNTER_GVA = 0x1000_0000
BUFFER_GVA = 0x1_0000_0000
BUFFER_GFN = GUEST_KERNEL_BYTES >> PAGE_SHIFT

STAMP_BYTES = 64
FAULT_THREADS_MAX = PAGE_SIZE // STAMP_BYTES - 1
_TAG_SHIFT = 32


def reason_gpa(vcpu: int) -> int:
    """Guest-physical address of the u32 APF reason word of ``vcpu`` (64-byte aligned, as the MSR wants it)."""
    return (PER_CPU_GFN + vcpu) << PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class Image:
    """A VM ready to boot: segments for hostd, address spaces for the vCPUs, tasks (id = place + 1) for the core."""

    segments: tuple[Segment, ...]
    spaces: tuple[AddressSpace, ...]
    tasks: tuple[TaskSpec, ...]


class _Layout:
    """Lays segments and extents one after the other, from the per-CPU pages upwards."""

    def __init__(self, vcpus: int) -> None:
        self.next_gfn = PER_CPU_GFN + vcpus
        self.segments = [Segment(PER_CPU_GFN, vcpus)]
        self.extents: list[Extent] = []
        self._next_code_gva = CODE_GVA

    def add(self, gva: int, pages: int, data: bytes = b"", executable: bool = False) -> None:
        """The next ``pages`` frames, mapped at ``gva``; writable unless executable. Without data: demand-zero."""
        self.segments.append(Segment(self.next_gfn, pages, data, demand_zero=not data))
        self.extents.append(Extent(gva, self.next_gfn, pages, writable=not executable, executable=executable))
        self.next_gfn += pages
        assert self.next_gfn <= BUFFER_GFN, f"programs and counters reach frame {self.next_gfn}, beyond {BUFFER_GFN}"

    def add_code(self, code: bytes) -> int:
        """Load ``code``; returns its gva."""
        assert 0 < len(code) <= CODE_GVA_STEP, f"{len(code)} bytes of code"
        gva = self._next_code_gva
        self._next_code_gva += CODE_GVA_STEP
        self.add(gva, -(-len(code) >> PAGE_SHIFT), code, executable=True)
        return gva

    def add_buffer(self, pages: int, stamps: tuple[Stamp, ...], populate: bool) -> None:
        """The buffer, at its own place in both address spaces; untouched unless ``populate``.

        Loaded first, so that what is used all the time (programs, per-CPU pages) is resident when the run starts, as it
        is in the steady state.
        """
        self.segments.insert(0, Segment(BUFFER_GFN, pages, stamps=stamps, demand_zero=not populate))
        self.extents.append(Extent(BUFFER_GVA, BUFFER_GFN, pages, writable=True, executable=False))


def build(scenario: Scenario, fault: LoadedProgram, work: LoadedProgram) -> Image:
    """The benchmark's image. Raises ScenarioError if the faulting threads' stamps do not fit."""
    layout = _Layout(scenario.vm.vcpus)
    faulting = _fault_tasks(scenario, fault, layout)
    working = _work_tasks(scenario, work, layout)
    if faulting:
        layout.add_buffer(scenario.bench.buffer >> PAGE_SHIFT, stamps(scenario), scenario.bench.populate)
    space = AddressSpace(BENCH_ASID, tuple(layout.extents))
    ascending = sorted(layout.extents, key=lambda extent: extent.gva)
    assert layout.extents == ascending, "extents out of order"
    return Image(tuple(layout.segments), (space,), (*faulting, *working))


def stamps(scenario: Scenario) -> tuple[Stamp, ...]:
    """One stamp for each faulting thread. Raises ScenarioError if stamps overflow a page, or tags 32 bits."""
    threads, pages = scenario.bench.fault_threads, scenario.bench.buffer >> PAGE_SHIFT
    if threads > FAULT_THREADS_MAX:
        raise ScenarioError(
            f"bench.fault_threads = {threads}: at most {FAULT_THREADS_MAX}, for each has {STAMP_BYTES} bytes of "
            f"its own in every page of the buffer"
        )
    if pages * threads >= 1 << _TAG_SHIFT:
        raise ScenarioError(
            f"bench.buffer = {scenario.bench.buffer}: {pages} pages times {threads} (bench.fault_threads) must be "
            f"less than 2**{_TAG_SHIFT}, for every stamp has a tag of its own"
        )
    stride = threads << _TAG_SHIFT
    return tuple(Stamp(STAMP_BYTES * i, (i + 1) << _TAG_SHIFT, stride) for i in range(threads))


def _fault_tasks(scenario: Scenario, fault: LoadedProgram, layout: _Layout) -> list[TaskSpec]:
    if not scenario.bench.fault_threads:
        return []
    code_gva = layout.add_code(fault.program.code)
    return [
        _task(scenario, fault, i, Account.FAULTING, code_gva, _fault_arguments(scenario, i, stamp))
        for i, stamp in enumerate(stamps(scenario))
    ]


def _fault_arguments(scenario: Scenario, index: int, stamp: Stamp) -> dict[str, int]:
    return {
        "buffer": BUFFER_GVA + stamp.offset,
        "pages": scenario.bench.buffer >> PAGE_SHIFT,
        "rng_seed": stream_key(scenario.seed, f"guest.fault_thread.{index}") or 1,
        "stamp_base": stamp.base,
        "stamp_stride": stamp.stride,
        "multiplier": CHECK_MULTIPLIER,
        "zero_ok": int(not scenario.bench.populate),
    }


def _work_tasks(scenario: Scenario, work: LoadedProgram, layout: _Layout) -> list[TaskSpec]:
    threads = scenario.bench.work_threads
    if not threads:
        return []
    code_gva = layout.add_code(work.program.code)
    layout.add(COUNTER_GVA, threads)
    return [
        _task(scenario, work, i, Account.COUNTING, code_gva, {"counter": COUNTER_GVA + i * PAGE_SIZE})
        for i in range(threads)
    ]


def _task(
    scenario: Scenario,
    loaded: LoadedProgram,
    index: int,
    account: Account,
    code_gva: int,
    arguments: Mapping[str, int],
) -> TaskSpec:
    return TaskSpec(
        name=f"{loaded.program.name}/{index}",
        program=loaded.program.name,
        vcpu=index % scenario.vm.vcpus,
        asid=BENCH_ASID,
        account=account,
        registers=loaded.registers(code_gva, arguments),
        results=tuple(loaded.results.items()),
    )
