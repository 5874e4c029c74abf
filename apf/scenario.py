"""The scenario: everything a run is a function of, besides nothing.

Read from TOML and from the command line, checked here once, before anything starts. A field that is wrong is named,
with what it held and what is allowed (``ScenarioError``).
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from apf import refusal, swapdevice
from apf.io_faults import IoFault, endless_stop
from apf.messages import FOREVER_NS, PAGE_SIZE, ApfMode, GupVariant
from apf.swapdevice import CarriedProfile, DeviceName

ApfName = Literal["off", "halt", "pv2010", "pv"]
GupName = Literal["fast", "noio", "nowait"]

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")

RESERVE_FRAMES_MIN = 64
WINDOW_NS_MIN, WINDOW_NS_MAX = 20_000, 1_000_000


class ScenarioError(Exception):
    """A scenario that cannot be run; the message names field, value and what is allowed, a line each."""


def parse_size(value: object) -> object:
    """Bytes from ``4096`` or ``"512MiB"``; anything else is left for the validator to refuse."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError("expected a number of bytes, or a number with B, KiB, MiB or GiB, as in '512MiB'")
        return int(match[1]) * _UNITS[match[2] or ""]
    return value


def _decimal(value: object) -> object:
    return Decimal(str(value)) if isinstance(value, float) else value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=PAGE_SIZE, le=1 << 40)]
SizeOrNone = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=1 << 40)]
"""0 where there is none, or where it follows from others."""
Cost = Annotated[int, Field(ge=0, le=1_000_000_000)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Costs(_Model):
    """Modelled costs in guest ns. Every default with where it comes from."""

    # EPT violation: exit, walk, map, entry. Commonly 1-2 us; no citable figure was found.
    ept_violation_ns: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1_500
    # Zero-fill of a page: less than half of the 1.2 us a whole anonymous minor fault was measured to take on a host.
    zero_fill_ns: Cost = 500
    # Host page-table fault that needs no I/O (swap-cache lookup, set the PTE): the rest of those 1.2 us.
    host_fault_ns: Cost = 700
    # Allocate a bio and submit one read: chosen, the order of a block-layer submission.
    swap_submit_ns: Cost = 1_000
    # Reclaim, per page scanned and per page unmapped (rmap walk and EPT entry): chosen, 0.2 and 1 us.
    reclaim_scan_ns: Cost = 200
    reclaim_unmap_ns: Cost = 1_000
    # From queueing the work item to the fault-in worker's get_user_pages: chosen, one kworker wake-up.
    fault_in_worker_ns: Cost = 2_000
    # The APF protocol. In sum 9,500 ns a fault (two injections, two handlers, the exit for page ready, two context
    # switches); the arm64 APF cover letter of 2021 puts 0.42-0.55 s on 55,000 APFs: 8,000-10,000 ns each.
    apf_inject_ns: Cost = 1_500
    apf_handler_ns: Cost = 1_000
    apf_ready_exit_ns: Cost = 1_500
    # The exit of the guest's write to MSR_KVM_ASYNC_PF_ACK (pv only): chosen, an exit without a walk or a mapping.
    apf_ack_exit_ns: Cost = 1_000
    # Guest context switch: chosen, lmbench's lat_ctx for small processes is 1-2 us on servers.
    context_switch_ns: Cost = 1_500
    # Timer tick: interrupt exit, injection, update_process_times: chosen.
    tick_ns: Cost = 1_000
    # Any other interrupt of the guest (timer, reschedule), exit to return: chosen, as a tick.
    interrupt_ns: Cost = 1_000
    # One sample of the profile, interrupt included: chosen, as a tick.
    profile_sample_ns: Cost = 1_000
    # A system call of the guest, entry to exit: chosen, below the 0.1-0.3 us usually measured with mitigations.
    syscall_ns: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100


class Vm(_Model):
    """One virtual machine and the memory group it lives in."""

    vcpus: Annotated[int, Field(ge=1, le=64)] = 4
    guest_memory: Size = 2 << 30
    group_memory: Size = 512 << 20
    # What guest memory is made of in the host: private anonymous memory, a mapped file, shared memory (memfd), or memory
    # that a userfaultfd's handler fills page by page from a snapshot ([userfault]).
    backing: Literal["anon", "file", "memfd", "userfault"] = "anon"
    # memory.high of its group: above it, who charges reclaims and is slowed down. 0: none.
    group_high: SizeOrNone = 0
    # What the guest's programs may not write, their text and constants, the VMM may not write either: it has mapped that
    # memory read-only, as it does a ROM.
    read_only: bool = False
    cpu_mips: Annotated[int, Field(ge=1, le=100_000)] = 1000
    hz: Literal[100, 250, 1000] = 250


class Userfault(_Model):
    """Who fetches missing pages of a VM with ``vm.backing = "userfault"``, one such for each VM."""

    # Threads that serve faults.
    handlers: Annotated[int, Field(ge=1, le=1024)] = 1
    # From reading the event to UFFDIO_COPY being over: chosen, two system calls, two wake-ups and a page from memory.
    handler_ns: Annotated[int, Field(ge=1, le=60_000_000_000)] = 25_000
    # Guest second of the run at which they die, which leaves faults for ever; 0: they do not.
    dies_at_s: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=100_000)] = Decimal(0)

    @property
    def dies_ns(self) -> int | None:
        """When they die, in guest ns."""
        return int(self.dies_at_s * 1_000_000_000) or None


class Bench(_Model):
    """The published benchmark's guest: threads that fault and threads that count."""

    fault_threads: Annotated[int, Field(ge=0, le=256)] = 4
    work_threads: Annotated[int, Field(ge=0, le=256)] = 4
    buffer: Size = 1 << 30
    # False: the run starts with an untouched buffer, whose pages are demand-zero (apf walk shows their first touch).
    populate: bool = True


PluginName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=64)]


class Sched(_Model):
    """The guest's scheduler: ``cfs``, ``eevdf``, ``rr``, or an entry point of group ``apf.schedulers``."""

    policy: PluginName = "cfs"


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", max_length=64)]


class Thread(_Model):
    """Tasks of a process that run one program: a built-in by its name, or a static ELF64 file; or a page-access trace.

    File names are relative to the scenario's file. ``sha256`` is filled in when the scenario is loaded.
    """

    program: Annotated[str, Field(max_length=4096)] = ""
    trace: Annotated[str, Field(max_length=4096)] = ""
    count: Annotated[int, Field(ge=1, le=256)] = 1
    nice: Annotated[int, Field(ge=-20, le=19)] = 0
    # vCPUs the tasks may run on; empty: all.
    vcpus: tuple[Annotated[int, Field(ge=0, le=63)], ...] = ()
    # Parameters of a built-in program.
    parameters: dict[str, Annotated[int, Field(ge=0, lt=1 << 63)]] = {}
    # The two arguments of an ELF program's _start after the instance's number.
    args: Annotated[tuple[Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)], ...], Field(max_length=2)] = ()
    start_s: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=100_000)] = Decimal(0)
    # Guest seconds from the start after which the tasks are killed; 0: they are not.
    lifetime_s: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=100_000)] = Decimal(0)
    sha256: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.program) is bool(self.trace):
            raise ValueError(f"program = {self.program!r}, trace = {self.trace!r}: one of the two")
        if self.trace and (self.parameters or self.args):
            raise ValueError(f"parameters = {self.parameters}, args = {self.args}: a trace takes none")
        return self

    @property
    def elf(self) -> Path | None:
        """The ELF file, if the program is one: its name has a suffix or a directory."""
        path = Path(self.program)
        return path if self.program and (path.suffix or len(path.parts) > 1) else None


class Process(_Model):
    """A guest process: an address space, and tasks. ``memory`` is what built-in programs, traces and accesses use."""

    name: Name = "process"
    count: Annotated[int, Field(ge=1, le=256)] = 1
    memory: Size = 16 << 20
    # False: the memory is demand-zero. True: it was all written once before the run, as far as the group's limit allows
    # it is resident, and what its programs use of it is stamped.
    populate: bool = True
    # Tasks that perform accesses from outside (the API for load generators).
    access_threads: Annotated[int, Field(ge=0, le=64)] = 0
    thread: Annotated[tuple[Thread, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if self.memory % PAGE_SIZE:
            raise ValueError(f"memory = {self.memory}: must be a multiple of the page size, {PAGE_SIZE}")
        if not self.thread and not self.access_threads:
            raise ValueError("thread = [] and access_threads = 0: at least one task")
        return self


class Kvm(_Model):
    """What KVM and the guest have agreed on about page faults."""

    # The guest of "pv" sets KVM_ASYNC_PF_SEND_ALWAYS, as none does since 5.8: not-present comes in kernel mode too, and
    # it panics.
    send_always: bool = False
    # False: HLT does not exit (KVM_X86_DISABLE_EXITS_HLT); a fault is asynchronous only if the guest can be told.
    hlt_exits: bool = True
    # "nested": EPT. "shadow": a table per address space that KVM fills at faults and empties by its reverse map.
    mmu: Literal["nested", "shadow"] = "nested"


InjectName = Literal[
    "lost_ready",
    "duplicate_ready",
    "dropped_ack",
    "alloc_failure",
    "token_left",
    "msr_lost",
    "restore",
    "restore_without_int",
    "restore_int_late",
    "lapic_off",
    "paging_off",
]
_OF_EVENTS = ("lost_ready", "duplicate_ready", "dropped_ack", "alloc_failure")
_WITH_LENGTH = ("lapic_off", "paging_off")


def check_inject(what: InjectName, nth: int, count: int, field: str, length: Decimal | int) -> None:
    """ValueError unless such a fault has an ``nth`` and a length (in ``field``) only where that means something."""
    if what not in _OF_EVENTS and (nth != 1 or count != 1):
        raise ValueError(f"nth = {nth}, count = {count}: {what} happens once; allowed: 1")
    if (what in _WITH_LENGTH) is not (length > 0):
        raise ValueError(f"{field} = {length}: {' and '.join(_WITH_LENGTH)} have a length, nothing else does")


class Inject(_Model):
    """A fault of the protocol itself, on one vCPU: at a time, or in the nth event of its kind.

    lost_ready, duplicate_ready: that page ready. dropped_ack: that write of MSR_KVM_ASYNC_PF_ACK. alloc_failure: that
    work item. token_left: the token word is found set. msr_lost: the APF MSRs are found clear. restore: the vCPU is
    restored elsewhere, MSRs in the right order; _without_int: the vector is forgotten; _int_late: written after the
    vCPU has been entered. lapic_off: the local APIC is software-disabled for ``for_s``. paging_off: CR0.PG is clear for
    ``for_s``, as in an SMI.
    """

    what: InjectName
    vm: Annotated[int, Field(ge=0, le=15)] = 0
    vcpu: Annotated[int, Field(ge=0, le=63)] = 0
    # Seconds after its VM's start: at that time or, for those that happen to an event, in the first one after it.
    at_s: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=100_000)] = Decimal(0)
    # Which of the events from ``at_s`` on, from 1, and how many in a row.
    nth: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    count: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    for_s: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=100_000)] = Decimal(0)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        check_inject(self.what, self.nth, self.count, "for_s", self.for_s)
        return self

    @property
    def at_ns(self) -> int:
        """When, in guest ns."""
        return int(self.at_s * 1_000_000_000)

    @property
    def for_ns(self) -> int:
        """How long, in guest ns."""
        return int(self.for_s * 1_000_000_000)


def _shipped(value: object) -> object:
    if value not in (*swapdevice.NAMES, swapdevice.MEASURED):
        raise ValueError(
            f"allowed: {', '.join(swapdevice.NAMES)}, or a TOML file with a profile, as 'my.toml', or "
            f"{swapdevice.MEASURED!r} with a real one in swap.file"
        )
    return value


class Swap(_Model):
    """The swap device: a profile that ships, by name, or a TOML file with a profile (``apf.swapdevice``).

    The file's name is relative to the scenario's file. Once loaded, the scenario has the profile itself in its place.
    Device "file" is a real one: I/O takes as long as it takes on ``file``.
    """

    device: Annotated[
        Annotated[DeviceName, BeforeValidator(_shipped), Tag("shipped")] | Annotated[CarriedProfile, Tag("carried")],
        Discriminator(lambda value: "carried" if isinstance(value, dict | CarriedProfile) else "shipped"),
    ] = "hdd-7200"
    # What becomes of a page that cannot be read: as in the kernel (the VM dies of it, or its tasks fault for ever), or
    # the task that touched it is killed and the operator is told.
    errors: Literal["kernel", "report"] = "kernel"
    # I/O failures.
    fault: Annotated[tuple[IoFault, ...], Field(max_length=256)] = ()
    # Size of the swap area; 0: twice the guests' memory, so that it is never more than half full.
    size: SizeOrNone = 0
    # Device "file": a file that does not exist yet, on what is to be measured. The run makes and removes it.
    file: Annotated[str, Field(max_length=4096)] = ""
    # What is read besides the page that faults: "kernel", "none", "stride", or an entry point of group apf.readahead.
    readahead: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=64)] = "kernel"
    # vm.page-cluster: at most 2 to the power of this pages at a time.
    page_cluster: Annotated[int, Field(ge=0, le=9)] = 3

    @model_validator(mode="after")
    def _has_file(self) -> Self:
        if self.is_measured is not bool(self.file):
            raise ValueError(
                f"device = {self.name!r}, file = {self.file!r}: device {swapdevice.MEASURED!r} needs a file, and no "
                f"other has one"
            )
        return self

    @property
    def is_measured(self) -> bool:
        """Whether I/O takes as long as it really does, so that no run is like another."""
        return self.device == swapdevice.MEASURED

    @property
    def name(self) -> str:
        """What to call the device."""
        return self.device if isinstance(self.device, str) else self.device.name


class Host(_Model):
    """The host: its VMs, frames beyond the groups' limits (for pages between two owners), and patience with peers."""

    # VMs of the scenario's kind, each with guests and a memory group of its own, on this host's memory and swap device.
    vms: Annotated[int, Field(ge=1, le=16)] = 1
    # Places for VMs: those beyond the first ``vms``, and those of VMs that have left, are for VMs that join while it
    # runs. 0: as many as ``vms``.
    max_vms: Annotated[int, Field(ge=0, le=16)] = 0
    # What the loss of a VM (a process of it died) does to the host: it ends with it, or goes on with the others.
    on_vm_loss: Literal["end", "leave"] = "end"
    # Memory for all VMs together. Less than their groups' limits in sum: below its watermarks kswapd reclaims, and
    # whoever allocates. 0: all groups' limits, and no watermarks.
    memory: SizeOrNone = 0
    # Which pages reclaim takes: "kernel" (active and inactive list, second chance), "clock", "lru", "fifo", or an entry
    # point of group apf.reclaim.
    reclaim: PluginName = "kernel"
    reserve_frames: Annotated[int, Field(ge=RESERVE_FRAMES_MIN, le=1 << 20)] = 4096
    # Wall seconds without any progress of virtual time after which a process gives up on its peers.
    patience_s: Annotated[int, Field(ge=1, le=3600)] = 120

    @property
    def places(self) -> int:
        """How many VMs there may be at a time."""
        return self.max_vms or self.vms


class Scenario(_Model):
    """A whole run, or a row of runs that differ in ``apf`` only."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    duration_s: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=100_000)] = Decimal(10)
    apf: Annotated[tuple[ApfName, ...], Field(min_length=1)] = ("off", "pv2010")
    gup: GupName = "noio"
    # Guest seconds a wall second that are not exceeded; 0: as fast as it goes. Changes nothing of a run's course.
    pace: Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=1000)] = Decimal(0)
    # Samples of the guest's profile a second of guest time; 0: none.
    profile_hz: Annotated[int, Field(ge=0, le=10_000)] = 0
    # 0: a twentieth of the device's median read latency, clamped to 20 us..1 ms.
    window_ns: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    vm: Vm = Vm()
    userfault: Userfault = Userfault()
    kvm: Kvm = Kvm()
    # Faults of the APF protocol that are injected.
    inject: Annotated[tuple[Inject, ...], Field(max_length=256)] = ()
    sched: Sched = Sched()
    # The guest's processes; without any, the published benchmark's (``bench``).
    process: Annotated[tuple[Process, ...], Field(max_length=256)] = ()
    bench: Bench = Bench()
    swap: Swap = Swap()
    host: Host = Host()
    costs: Costs = Costs()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for path, value in (
            ("vm.guest_memory", self.vm.guest_memory),
            ("vm.group_memory", self.vm.group_memory),
            ("vm.group_high", self.vm.group_high),
            ("swap.size", self.swap.size),
            ("host.memory", self.host.memory),
            ("bench.buffer", self.bench.buffer),
        ):
            if value % PAGE_SIZE:
                raise ValueError(f"{path} = {value}: must be a multiple of the page size, {PAGE_SIZE}")
        if len(set(self.apf)) != len(self.apf):
            raise ValueError(f"apf = {list(self.apf)}: each mode at most once")
        if self.window_ns and self.window_ns < 1000:
            raise ValueError(f"window_ns = {self.window_ns}: 0 (derive from the device) or at least 1000")
        room = self.vm.guest_memory - GUEST_KERNEL_BYTES
        names = [process.name for process in self.process]
        if len(set(names)) != len(names):
            raise ValueError(f"process.name: {', '.join(names)}: each name once")
        for process in self.process:
            for thread in process.thread:
                absent = [vcpu for vcpu in thread.vcpus if vcpu >= self.vm.vcpus]
                if absent:
                    raise ValueError(
                        f"process.{process.name}.thread.vcpus = {list(thread.vcpus)}: vm.vcpus is {self.vm.vcpus}, so "
                        f"0 to {self.vm.vcpus - 1}"
                    )
        if self.kvm.send_always and "pv2010" in self.apf:
            raise ValueError(
                f"kvm.send_always = true, apf = {list(self.apf)}: before 5.8 only a preemptible guest kernel asked for "
                f"it, which this is not; modes other than pv2010"
            )
        for number, inject in enumerate(self.inject):
            for field, value, there in (
                ("vm", inject.vm, self.host.places),
                ("vcpu", inject.vcpu, self.vm.vcpus),
            ):
                if value >= there:
                    raise ValueError(f"inject.{number}.{field} = {value}: 0 to {there - 1}")
        if self.userfault.dies_at_s and self.vm.backing != "userfault":
            raise ValueError(
                f"userfault.dies_at_s = {self.userfault.dies_at_s}, vm.backing = {self.vm.backing!r}: 0, or backing "
                f"'userfault'"
            )
        if self.userfault.dies_at_s and not self.duration_s:
            raise ValueError(
                f"userfault.dies_at_s = {self.userfault.dies_at_s}, duration_s = 0: who waits for a dead handler hears "
                f"of no shutdown; a duration"
            )
        for number, fault in enumerate(self.swap.fault):
            if fault.vm >= self.host.places:
                raise ValueError(f"swap.fault.{number}.vm = {fault.vm}: -1 (any) to {self.host.places - 1}")
            if endless_stop(fault.what, fault.for_s, self.duration_s):
                raise ValueError(
                    f"swap.fault.{number}.for_s = 0, duration_s = 0: nothing would ever end a stop; a length for one"
                )
        if not self.process and self.bench.buffer > room:
            raise ValueError(
                f"bench.buffer = {self.bench.buffer}: the guest has {self.vm.guest_memory} bytes, of which "
                f"{GUEST_KERNEL_BYTES} are for its kernel and programs; at most {max(room, 0)} are left"
            )
        if self.host.max_vms and self.host.max_vms < self.host.vms:
            raise ValueError(f"host.max_vms = {self.host.max_vms}: 0, or at least host.vms, which is {self.host.vms}")
        if self.vm.group_memory < GROUP_BYTES_MIN:
            raise ValueError(f"vm.group_memory = {self.vm.group_memory}: at least {GROUP_BYTES_MIN}")
        if 0 < self.host.memory < GROUP_BYTES_MIN * self.host.places:
            least = GROUP_BYTES_MIN * self.host.places
            raise ValueError(
                f"host.memory = {self.host.memory}: 0, or at least {GROUP_BYTES_MIN} for each VM, so {least}"
            )
        if not self.process and self.bench.fault_threads + self.bench.work_threads == 0:
            raise ValueError("bench.fault_threads = 0 and bench.work_threads = 0: at least one thread")
        if self.duration_s and self.duration_ns < 1:
            raise ValueError(f"duration_s = {self.duration_s}: at least one nanosecond, or 0 (until shut down)")
        return self

    @property
    def duration_ns(self) -> int:
        """Length of the run in guest ns."""
        return int(self.duration_s * 1_000_000_000)

    @property
    def end_ns(self) -> int:
        """When the run ends; FOREVER_NS: when it is shut down."""
        return self.duration_ns or FOREVER_NS

    @property
    def mode(self) -> ApfMode:
        """The one mode of a single run (see ``for_mode``)."""
        assert len(self.apf) == 1, "a run has one mode; split the scenario first"
        return ApfMode[self.apf[0].upper()]

    @property
    def gup_variant(self) -> GupVariant:
        """The variant as the cores know it."""
        return GupVariant[self.gup.upper()]

    def fingerprint(self) -> str:
        """By which the processes of a run know that they run the same scenario."""
        return hashlib.blake2b(self.model_dump_json(exclude={"pace"}).encode(), digest_size=8).hexdigest()

    def for_mode(self, mode: ApfName) -> Scenario:
        """The same scenario as one run in ``mode``."""
        return self.model_copy(update={"apf": (mode,)})


GUEST_KERNEL_BYTES = 64 << 20
"""Guest-physical memory below the benchmark's buffer: per-CPU areas, programs, counters, stacks."""

GROUP_BYTES_MIN = 4 << 20


def load(path: Path | None, overrides: Mapping[str, Any]) -> Scenario:
    """The scenario in TOML file ``path`` (None: all defaults), with dotted ``overrides`` (``{"vm.vcpus": 2}``) on top.

    Raises ScenarioError.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text())
        except OSError as error:
            raise ScenarioError(f"scenario file {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ScenarioError(f"scenario file {path}: not TOML: {error}") from error
    for dotted, value in overrides.items():
        *sections, name = dotted.split(".")
        table = data
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ScenarioError(f"{section} = {table!r}: expected a table")
        table[name] = value
    directory = Path() if path is None else path.parent
    _find_files(data, directory)
    _find_device(data, directory)
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise ScenarioError("\n".join(refusal.lines(error, Scenario, ("shipped", "carried")))) from error


def _find_files(data: dict[str, Any], directory: Path) -> None:
    """Make file names of threads absolute, and note what the files hold: that is part of the scenario."""
    processes = data.get("process", ())
    for process in processes if isinstance(processes, list) else ():
        threads = process.get("thread", ()) if isinstance(process, dict) else ()
        for thread in threads if isinstance(threads, list) else ():
            for field in ("program", "trace"):
                name = thread.get(field) if isinstance(thread, dict) else None
                if not isinstance(name, str) or not name:
                    continue
                if field == "program" and not Path(name).suffix and len(Path(name).parts) == 1:
                    continue
                file = (directory / name).resolve()
                try:
                    digest = hashlib.sha256(file.read_bytes()).hexdigest()
                except OSError as error:
                    raise ScenarioError(f"process.thread.{field} = {name!r}: {file}: {error.strerror}") from error
                if thread.setdefault("sha256", digest) != digest:
                    raise ScenarioError(f"process.thread.{field} = {name!r}: {file} has sha256 {digest}")
                thread[field] = str(file)


def _find_device(data: dict[str, Any], directory: Path) -> None:
    """Put the profile in the place of the name of its file."""
    swap = data.get("swap")
    name = swap.get("device") if isinstance(swap, dict) else None
    if isinstance(swap, dict) and isinstance(swap.get("file"), str) and swap["file"]:
        data["swap"] = swap = {**swap, "file": str((directory / swap["file"]).absolute())}
    if not isinstance(swap, dict) or not isinstance(name, str) or not swapdevice.is_file(name):
        return
    file = (directory / name).resolve()
    try:
        data["swap"] = {**swap, "device": swapdevice.carry(file)}
    except OSError as error:
        raise ScenarioError(f"swap.device = {name!r}: {file}: {error.strerror}") from error
    except swapdevice.ProfileError as error:
        raise ScenarioError(
            "\n".join(f"swap.device = {name!r}: {line}" for line in str(error).splitlines())
        ) from error
