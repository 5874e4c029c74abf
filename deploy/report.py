"""What the terminal shows of a bench: the table of counts, where the vCPUs' time went, and why."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from apf.scenario import Scenario
from deploy.bench import ratio, ratios
from deploy.published import COUNTERS, DURATION_S, KERNEL_ROWS, PROFILES, RATIO, USER_SYMBOLS
from deploy.result import CAUSES, RunResult

_TASKS_SHOWN = 200
_ALWAYS = ("counting", "faulting", "stall", "idle", "apf", "kernel")


def show(console: Console, scenario: Scenario, results: list[RunResult]) -> None:
    """Print everything there is to say of a bench."""
    console.print(_counts(scenario, results))
    console.print(_times(results))
    console.print(explanation(results), highlight=False)
    show_profiles(console, results, beside_published=not scenario.process)
    for result in results:
        _show_run(console, result)


def show_run(console: Console, results: list[RunResult]) -> None:
    """Print everything there is to say of a run of processes: the bench's tables, and one of the tasks."""
    for result in results:
        console.print(_tasks(result))
    console.print(_times(results))
    show_profiles(console, results, beside_published=False)
    for result in results:
        _show_run(console, result)


def _tasks(run: RunResult) -> Table:
    title = f"{run.mode}: tasks after {run.virtual_seconds:g} s, {run.scenario.sched.policy}"
    table = Table(title=title, title_justify="left")
    for column in ("id", "process", "task", "state"):
        table.add_column(column)
    for column in ("nice", "vCPU", "CPU time", "minflt", "majflt", "switches"):
        table.add_column(column, justify="right")
    table.add_column("came to", overflow="fold")
    whole_ns = run.virtual_seconds * 1e9 or 1
    for task in run.tasks[:_TASKS_SHOWN]:
        came = [f"{name} {value:,}" for name, value in task["values"].items() if value or name != "corrupt"]
        came += [f"counted {task['counted']:,}"] if task["counted"] else []
        came += [f"status {task['status']}"] if task["state"] == "DEAD" and not task["killed"] else []
        came += [f"killed: {task['killed']}"] if task["killed"] else []
        share = 100 * task["sum_exec_ns"] / whole_ns
        numbers = (task["nice"], task["vcpu"], f"{task['sum_exec_ns'] / 1e9:.6f} s {share:5.1f} %")
        counts = (f"{task[name]:,}" for name in ("min_flt", "maj_flt", "switches"))
        row = (task["id"], task["process"], task["name"], task["state"], *numbers, *counts)
        table.add_row(*map(str, row), ", ".join(came))
    if len(run.tasks) > _TASKS_SHOWN:
        table.caption = f"and {len(run.tasks) - _TASKS_SHOWN} tasks more (--json has all)"
    return table


def show_profiles(console: Console, results: list[RunResult], beside_published: bool) -> None:
    """Print the guest's profile of every run that took samples, beside the published one if there is one."""
    for result in results:
        if result.scenario.profile_hz:
            published = PROFILES.get(result.scenario.apf[0], {}) if beside_published else {}
            console.print(_profile(result, published))


def _profile(run: RunResult, published: dict[str, float]) -> Table:
    samples = sum(row["samples"] for row in run.profile)
    table = Table(
        title=f"{run.mode}: profile inside the guest, {samples:,} samples at {run.scenario.profile_hz} Hz",
        title_justify="left",
    )
    table.add_column("symbol")
    table.add_column("of")
    table.add_column("samples", justify="right")
    table.add_column("share", justify="right")
    if published:
        for column in ("published", "difference"):
            table.add_column(column, justify="right")
        table.add_column("why", overflow="fold")
    costs = run.scenario.costs.model_dump()
    rows = [(row["symbol"], row["program"] or "kernel", row["samples"]) for row in run.profile]
    missing = [symbol for symbol in published if symbol not in {row["symbol"] for row in run.profile}]
    rows += [(symbol, symbol if symbol in USER_SYMBOLS else "kernel", 0) for symbol in missing]
    for symbol, program, count in rows:
        share = 100 * count / samples if samples else 0.0
        cells = [symbol, program, f"{count:,}", f"{share:.2f} %"]
        if published:
            there = published.get(symbol)
            cells += ["", ""] if there is None else [f"{there:.2f} %", f"{share - there:+.2f}"]
            cells.append(KERNEL_ROWS.get(symbol, "").format(**costs))
        table.add_row(*cells)
    return table


def _counts(scenario: Scenario, results: list[RunResult]) -> Table:
    vm, bench = scenario.vm, scenario.bench
    title = (
        f"{vm.vcpus} vCPUs, {_size(vm.guest_memory)} guest in a {_size(vm.group_memory)} group, "
        f"{bench.fault_threads} faulting threads on {_size(bench.buffer)}, {bench.work_threads} working threads, "
        f"{scenario.duration_s} s; cpu_mips {vm.cpu_mips}, {scenario.swap.name}, gup {scenario.gup}, "
        f"HZ {vm.hz}, window {results[0].window_ns / 1000:g} us, seed {scenario.seed}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("counted by")
    modes = [result.mode for result in results]
    for mode in modes:
        table.add_column(mode, justify="right")
    published = [mode for mode in scenario.apf if mode in COUNTERS]
    for mode in published:
        table.add_column(f"published, {mode}, {DURATION_S} s", justify="right", style="dim")
    workers = max(len(result.workers) for result in results)
    for index in range(max(workers, 4 if published else 0)):
        ours = [_cell(result.workers, index) for result in results]
        table.add_row(f"worker {index}", *ours, *(_cell(COUNTERS[mode], index) for mode in published))
    table.add_section()
    ours = [f"{result.total:,}" for result in results]
    table.add_row("sum", *ours, *(f"{sum(COUNTERS[mode]):,}" for mode in published))
    found = ratios(results)
    if found:
        cells = [f"{found[mode]:.3f}" if mode in found else "" for mode in modes]
        table.add_row("ratio", *cells, *(f"{RATIO:.3f}" if mode == "pv2010" else "" for mode in published))
    served = [f"{result.counter('faults_major') + result.counter('faults_async'):,}" for result in results]
    table.add_row("pages waited for", *served, *("" for _ in published))
    return table


def _cell(counts: tuple[int, ...], index: int) -> str:
    return f"{counts[index]:,}" if index < len(counts) else ""


def _size(size: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size % (1 << power) == 0:
            return f"{size >> power} {unit}"
    return f"{size} B"


def _times(results: list[RunResult]) -> Table:
    table = Table(title="vCPU time by cause, all vCPUs together", title_justify="left")
    table.add_column("apf")
    shown = [cause for cause in CAUSES if cause in _ALWAYS or any(result.time_ns(cause) for result in results)]
    for cause in shown:
        table.add_column(cause, justify="right")
    for result in results:
        whole = sum(result.time_ns(cause) for cause in CAUSES) or 1
        cells = [
            f"{result.time_ns(cause) / 1e9:.3f} s {100 * result.time_ns(cause) / whole:6.2f} %" for cause in shown
        ]
        table.add_row(result.mode, *cells)
    return table


def explanation(results: list[RunResult]) -> str:
    """One sentence on what makes the ratio, from the runs' own figures."""
    by_mode = {result.mode: result for result in results}
    parts = []
    if (off := by_mode.get("off")) is not None:
        parts.append(_explain_off(off))
    if (halting := by_mode.get("halt")) is not None:
        parts.append(_explain_halt(halting))
    parts += [_explain_apf(by_mode[mode]) for mode in ("pv2010", "pv") if mode in by_mode]
    found = ratio(results)
    tail = "" if found is None else f": {found:.2f} times the work"
    told = "; ".join(parts)
    return told[:1].upper() + told[1:] + tail + "."


def _explain_off(run: RunResult) -> str:
    faults = run.counter("faults_major")
    if not faults:
        return "Without APF no access had to wait for I/O"
    mean_ns = run.counter("stall_ns") / faults
    return (
        f"Without APF each of {faults:,} major faults stopped its vCPU for {_time(mean_ns)} on average, "
        f"{_share(run, 'stall')} of all time, which the guest charges to the task that faulted, so the scheduler "
        f"gives the workers the time in between, {_share(run, 'counting')}"
    )


def _explain_halt(run: RunResult) -> str:
    faults = run.counter("faults_async")
    if not faults:
        return "with the host's half of APF no access had to wait for I/O"
    halt_ns = run.counter("halt_ns") / faults
    wait_ns = run.counter("async_wait_ns") / faults
    return (
        f"with the host's half alone ({run.mode}) each of {faults:,} pages took {_time(wait_ns)}, of which its vCPU "
        f"halted {_time(halt_ns)}, until a tick let another task run; the guest still charges what was halted to the "
        f"task that faulted, so the workers had {_share(run, 'counting')}"
    )


def _explain_apf(run: RunResult) -> str:
    faults = run.counter("faults_async")
    if not faults:
        return f"with APF ({run.mode}) no access had to wait for I/O either"
    wait_ns = run.counter("async_wait_ns") / faults
    cost_ns = (run.time_ns("apf") + run.time_ns("faulting")) / faults
    return (
        f"with APF ({run.mode}) the {faults:,} tasks that had to wait ({_time(wait_ns)} each) slept instead, every one "
        f"at a cost of {_time(cost_ns)} of vCPU time, and the workers had the rest, {_share(run, 'counting')}"
    )


def _share(run: RunResult, cause: str) -> str:
    whole = sum(run.time_ns(each) for each in CAUSES) or 1
    return f"{100 * run.time_ns(cause) / whole:.2f} %"


def _time(value_ns: float) -> str:
    return f"{value_ns / 1e6:.1f} ms" if value_ns >= 1e6 else f"{value_ns / 1e3:.1f} us"


def _show_run(console: Console, run: RunResult) -> None:
    seconds = run.wall_seconds
    kinds = ", ".join(f"{run.counter(f'faults_{kind}'):,} {kind}" for kind in ("minor", "major", "async"))
    console.print(
        f"{run.mode}: digest {run.digest}, faults {kinds}, corrupt pages {run.corrupt_pages}, "
        f"{run.windows:,} windows, {seconds:.1f} s of wall time",
        highlight=False,
    )
    for line in run.told:
        console.print(f"{run.mode}: {line}", style="yellow", highlight=False, markup=False)
