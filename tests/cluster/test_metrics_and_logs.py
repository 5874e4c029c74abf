"""Every daemon serves counters of the run it is in; log lines of all processes come out whole, in one stream."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_runs import small, until, until_running
from scrapes import scrape

from deploy.local import LocalCluster
from vcpud import worker

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING (vcpu-0-[0-3]) vcpud\.worker: (.*)")
LINES = 200
TEXT = "x" * 3000


def test_metrics_during_a_run() -> None:
    with LocalCluster(small(duration_s="20")) as cluster:
        until_running(cluster, 30_000_000)
        host, guest, vcpus = (scrape(cluster, name) for name in ("hostd", "guest-0", "vcpud-0"))
        assert host.sum("apf_virtual_time_seconds") > 0.0 and host.sum("apf_windows_total") > 0
        assert host.sum("apf_host_pf_taken_total") > 0 and host.sum("apf_swap_slots", state="used") > 0
        assert guest.sum("apf_context_switches_total") >= 4
        retired = vcpus.sum("apf_guest_instructions_total")
        assert retired > 1_000_000
        assert vcpus.sum("apf_faults_total") > 0 and vcpus.sum("apf_vcpu_messages_total") > 0
        assert vcpus.sum("apf_vcpu_seconds_total", state="counting") > 0.0

        def further() -> bool:
            return scrape(cluster, "vcpud-0").sum("apf_guest_instructions_total") > retired

        until("counters that go on", further)


def _log_much(config: worker.WorkerConfig) -> None:
    log = logging.getLogger("vcpud.worker")
    for number in range(LINES):
        log.warning("%s %d", TEXT, number)


def test_log_lines_come_out_whole() -> None:
    """All workers log at once, lines longer than a pipe takes in one piece of a process that does not care."""
    here = Path(__file__).parent
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from apf import process\n"
        "import test_metrics_and_logs as test\n"
        "test.run_that_logs()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(here)], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen: dict[str, list[int]] = {}
    for line in done.stderr.splitlines():
        match = LINE.fullmatch(line)
        assert match, f"not a whole line: {line[:200]!r}"
        text, _, number = match[2].rpartition(" ")
        assert text == TEXT
        seen.setdefault(match[1], []).append(int(number))
    assert seen == {f"vcpu-0-{vcpu}": list(range(LINES)) for vcpu in range(4)}


def run_that_logs() -> None:
    """For the process of the test above: a supervisor with workers that do nothing but log."""
    from apf import process
    from apf.listen import PLAIN
    from deploy.local import LocalCluster as Cluster
    from deploy.local import _vcpud

    process.start_logging()
    worker.main = _log_much
    scenario = small()
    cluster = Cluster(scenario)
    try:
        config = (scenario, cluster.run, 0, False, None, PLAIN)
        child = process.spawn("vcpud-0", _vcpud, *config, run=cluster.run, report="vcpud-0")
        child.join()
        assert child.exitcode == 0
    finally:
        cluster.run.remove()


def test_the_pids_are_those_of_the_run() -> None:
    """What a user would kill or trace: seven processes for four vCPUs."""
    from deploy.local import processes_of

    with LocalCluster(small(duration_s="20")) as cluster:
        until_running(cluster)
        pids = processes_of(cluster)
        assert len(set(pids)) == 7 and os.getpid() not in pids


pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")
