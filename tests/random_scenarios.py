"""Scenarios by chance, one a seed: small, of every protocol, with or without faults of the protocol itself.

``random_memory`` adds what the host's memory has to offer: every device, reclaim policy, readahead and backing, limits
of all kinds, and failures of the swap device.
"""

from __future__ import annotations

from random import Random
from typing import Any

from apf.scenario import Scenario, ScenarioError, load
from deploy.bench import prepare

MODES = ("off", "halt", "pv2010", "pv")
_OF_EVENTS = ("lost_ready", "duplicate_ready", "dropped_ack", "alloc_failure")
_TIMED = ("token_left", "msr_lost", "restore", "restore_without_int", "restore_int_late")
_WITH_LENGTH = ("lapic_off", "paging_off")


def _thread(draw: Random, vcpus: int) -> dict[str, Any]:
    program = draw.choice(("sequential", "strided", "zipfian", "pointer_chase", "shifting", "work_thread", "idle"))
    thread: dict[str, Any] = {"program": program, "count": draw.randint(1, 3), "nice": draw.choice((0, 0, 5, -5, 19))}
    if draw.random() < 0.3:
        thread["vcpus"] = sorted(draw.sample(range(vcpus), draw.randint(1, vcpus)))
    if draw.random() < 0.3:
        thread["start_s"] = draw.choice(("0.001", "0.003"))
    if draw.random() < 0.4:
        thread["lifetime_s"] = draw.choice(("0.002", "0.005"))
    return thread


def _inject(draw: Random, vcpus: int, vms: int) -> dict[str, Any]:
    what = draw.choice((*_OF_EVENTS, *_TIMED, *_WITH_LENGTH))
    inject: dict[str, Any] = {"what": what, "vcpu": draw.randrange(vcpus), "vm": draw.randrange(vms)}
    inject["at_s"] = f"0.00{draw.randint(0, 9)}"
    if what in _OF_EVENTS:
        inject |= {"nth": draw.randint(1, 5), "count": draw.choice((1, 1, 2, 1000))}
    if what in _WITH_LENGTH:
        inject["for_s"] = draw.choice(("0.001", "0.004"))
    return inject


def random_scenario(seed: int, **overrides: Any) -> Scenario:
    """The scenario of ``seed``: about ten guest milliseconds that the twin does in a second."""
    draw = Random(seed)
    vcpus, vms = draw.choice((1, 2, 2, 3)), draw.choice((1, 1, 1, 2))
    processes = [
        {
            "name": f"p{number}",
            "count": draw.choice((1, 1, 2)),
            "memory": draw.choice(("1MiB", "4MiB", "8MiB")),
            "populate": draw.random() < 0.7,
            "thread": [_thread(draw, vcpus) for _ in range(draw.randint(1, 3))],
        }
        for number in range(draw.randint(1, 3))
    ]
    chosen: dict[str, Any] = {
        "seed": seed,
        "apf": [draw.choice(MODES)],
        "duration_s": draw.choice(("0.004", "0.010")),
        "gup": draw.choice(("fast", "noio", "nowait")),
        "swap.device": draw.choice(("nvme", "nvme", "hdd-7200")),
        "profile_hz": draw.choice((0, 0, 5000)),
        "vm.vcpus": vcpus,
        "vm.guest_memory": "128MiB",
        "vm.group_memory": draw.choice(("4MiB", "8MiB", "16MiB")),
        "vm.hz": draw.choice((100, 250, 1000)),
        "sched.policy": draw.choice(("cfs", "eevdf", "rr")),
        "host.vms": vms,
        "host.reserve_frames": 1024,
        "host.patience_s": 60,
        "kvm.hlt_exits": draw.random() < 0.8,
        "kvm.mmu": draw.choice(("nested", "nested", "shadow")),
        "process": processes,
    }
    chosen["vm.backing"] = draw.choice(("anon", "anon", "file", "memfd", "userfault"))
    chosen["swap.readahead"] = draw.choice(("kernel", "kernel", "none", "stride"))
    chosen["swap.page_cluster"] = draw.choice((3, 3, 0, 5))
    if chosen["vm.backing"] == "userfault":
        chosen["userfault.handlers"] = draw.choice((1, 3))
        chosen["userfault.dies_at_s"] = draw.choice((0, 0, "0.003"))
    if draw.random() < 0.3:
        chosen["inject"] = [_inject(draw, vcpus, vms) for _ in range(draw.randint(1, 3))]
    return load(None, chosen | {name.replace("__", "."): value for name, value in overrides.items()})


_DEVICES = ("nvme", "nvme", "hdd-7200", "sata-ssd", "rdma", "zswap", "zram")
_OF_IOS = ("read_error", "write_error", "torn_write", "lost_write")


def _io_fault(draw: Random) -> dict[str, Any]:
    what = draw.choice((*_OF_IOS, "slow", "stop", "swap_full"))
    fault: dict[str, Any] = {"what": what, "at_s": f"0.00{draw.randint(0, 8)}"}
    if what in _OF_IOS:
        fault |= {"nth": draw.choice((1, 3, 20)), "count": draw.choice((0, 1, 1, 2, 10))}
    elif what == "slow":
        fault |= {"factor": draw.choice((1, 5)), "add_s": draw.choice(("0.0001", "0.002"))}
        fault |= {"io": draw.choice(("any", "read", "write"))}
    if what not in _OF_IOS:
        fault["for_s"] = draw.choice(("0.001", "0.003", "0"))
    return fault


def random_memory(seed: int) -> dict[str, Any]:
    """What seed ``seed`` makes of the host's memory, as overrides of ``random_scenario``."""
    draw = Random(f"memory {seed}")
    chosen: dict[str, Any] = {
        "swap.device": draw.choice(_DEVICES),
        "swap.readahead": draw.choice(("kernel", "kernel", "none", "stride")),
        "swap.page_cluster": draw.choice((3, 3, 0, 5)),
        "swap.errors": draw.choice(("kernel", "report")),
        "host.reclaim": draw.choice(("kernel", "kernel", "clock", "lru", "fifo")),
        "host.reserve_frames": draw.choice((64, 256, 1024)),
        "vm.backing": draw.choice(("anon", "anon", "anon", "file", "memfd", "userfault")),
    }
    if draw.random() < 0.25:
        chosen["vm.group_high"] = draw.choice(("3MiB", "4MiB", "7MiB"))
    if draw.random() < 0.25:
        chosen["host.memory"] = draw.choice(("8MiB", "10MiB", "14MiB"))
    if draw.random() < 0.25:
        chosen["swap.size"] = draw.choice(("24MiB", "48MiB", "96MiB"))
    if chosen["vm.backing"] == "userfault" and draw.random() < 0.3:
        chosen["userfault.dies_at_s"] = draw.choice(("0.002", "0.005"))
    if draw.random() < 0.4:
        chosen["swap.fault"] = [_io_fault(draw) for _ in range(draw.randint(1, 3))]
    return chosen


def random_host(seed: int) -> Scenario | None:
    """The scenario of ``seed`` with a memory of its own; None if the two do not go together, as scenarios may not."""
    overrides = {name.replace(".", "__"): value for name, value in random_memory(seed).items()}
    try:
        scenario = random_scenario(seed, **overrides)
        prepare(scenario)
    except ScenarioError:
        return None
    return scenario
