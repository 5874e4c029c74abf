"""The scenario: everything a run is a function of, besides nothing.

Read from TOML and from the command line, checked here once, before anything starts. A field that is wrong is named,
with what it held and what is allowed (``ScenarioError``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from apf import refusal, swapdevice
from apf.costs import Costs
from apf.fields import PluginName, Seconds, Section, Size, SizeOrNone, decimal
from apf.io_faults import IoFault, endless_stop
from apf.messages import FOREVER_NS, PAGE_SIZE, ApfMode, GupVariant
from apf.protocol_faults import Inject
from apf.swapdevice import CarriedProfile, DeviceName
from apf.workload import Bench, Process, Sched

ApfName = Literal["off", "halt", "pv2010", "pv"]
GupName = Literal["fast", "noio", "nowait"]

RESERVE_FRAMES_MIN = 64
WINDOW_NS_MIN, WINDOW_NS_MAX = 20_000, 1_000_000


class ScenarioError(Exception):
    """A scenario that cannot be run; the message names field, value and what is allowed, a line each."""


class Vm(Section):
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


class Userfault(Section):
    """Who fetches missing pages of a VM with ``vm.backing = "userfault"``, one such for each VM."""

    # Threads that serve faults.
    handlers: Annotated[int, Field(ge=1, le=1024)] = 1
    # From reading the event to UFFDIO_COPY being over: chosen, two system calls, two wake-ups and a page from memory.
    handler_ns: Annotated[int, Field(ge=1, le=60_000_000_000)] = 25_000
    # Guest second of the run at which they die, which leaves faults for ever; 0: they do not.
    dies_at_s: Seconds = Decimal(0)

    @property
    def dies_ns(self) -> int | None:
        """When they die, in guest ns."""
        return int(self.dies_at_s * 1_000_000_000) or None


class Kvm(Section):
    """What KVM and the guest have agreed on about page faults."""

    # The guest of "pv" sets KVM_ASYNC_PF_SEND_ALWAYS, as none does since 5.8: not-present comes in kernel mode too, and
    # it panics.
    send_always: bool = False
    # False: HLT does not exit (KVM_X86_DISABLE_EXITS_HLT); a fault is asynchronous only if the guest can be told.
    hlt_exits: bool = True
    # "nested": EPT. "shadow": a table per address space that KVM fills at faults and empties by its reverse map.
    mmu: Literal["nested", "shadow"] = "nested"


def _shipped(value: object) -> object:
    if value not in (*swapdevice.NAMES, swapdevice.MEASURED):
        raise ValueError(
            f"allowed: {', '.join(swapdevice.NAMES)}, or a TOML file with a profile, as 'my.toml', or "
            f"{swapdevice.MEASURED!r} with a real one in swap.file"
        )
    return value


class Swap(Section):
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
    readahead: PluginName = "kernel"
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


class Host(Section):
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


class Scenario(Section):
    """A whole run, or a row of runs that differ in ``apf`` only."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    duration_s: Seconds = Decimal(10)
    apf: Annotated[tuple[ApfName, ...], Field(min_length=1)] = ("off", "pv2010")
    gup: GupName = "noio"
    # Guest seconds a wall second that are not exceeded; 0: as fast as it goes. Changes nothing of a run's course.
    pace: Annotated[Decimal, BeforeValidator(decimal), Field(ge=0, le=1000)] = Decimal(0)
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
    data: dict[str, Any] = {} if path is None else refusal.read_toml(path, "scenario file", ScenarioError)
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
