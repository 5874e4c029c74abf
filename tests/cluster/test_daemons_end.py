"""Daemons started by hand: how each ends when it is told to, at any time, and when another goes away."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from cluster_runs import DEADLINE_S, children_of, state_of, until
from daemons import DAEMONS, Daemons, terminate


@pytest.mark.parametrize("name", DAEMONS)
@pytest.mark.parametrize("after_s", [0.05, 0.5, 0.0, 1.0])
def test_sigterm_before_any_peer_is_there(daemons: Daemons, name: str, after_s: float) -> None:
    """Also while Python still imports: then nothing heeds the signal yet, and nothing needs to."""
    daemon = daemons.start(name)
    if after_s not in (0.05, 0.5):
        until("a daemon with options", (daemons.files / f"{name}.lock").exists)
    time.sleep(after_s)
    terminate(daemon)
    assert daemons.ends(name) in ({-signal.SIGTERM, 143} if after_s in (0.05, 0.5) else {143})
    assert not list(daemons.memory.iterdir()) and not (daemons.files / "swap").exists()


@pytest.mark.parametrize("name", ["hostd", "guest-0"])
def test_sigterm_while_loading(daemons: Daemons, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, which waits for the load, says whom it lost."""
    slow = daemons.files / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'hostd' in ' '.join(sys.orig_argv):\n"
        "    import hostd.shell as shell\n"
        "    load = shell.HostShell.load\n"
        "    def slowly(*args):\n"
        "        open(sys.orig_argv[sys.orig_argv.index('--files') + 1] + '/loading', 'w').close()\n"
        "        time.sleep(30)\n"
        "    shell.HostShell.load = slowly\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(slow))
    daemons.start("hostd")
    daemons.start("guest-0")
    until("a load", (daemons.files / "loading").exists)
    terminate(daemons.running[name])
    assert daemons.ends(name) == 143
    if name == "hostd":
        assert daemons.ends("guest-0") == 1
        assert "guestsched: lost hostd while it loaded VM 0" in daemons.log("guest-0")


def test_sigterm_of_any_while_running(short_path: Path) -> None:
    """Whoever is told ends with 143, the others with 1 and whom they lost; no worker is left, nor memory."""
    for told in DAEMONS:
        (short_path / told).mkdir()
        daemons = Daemons(short_path / told)
        try:
            for name in DAEMONS:
                daemons.start(name, "--log-level", "INFO")
            daemons.until_windows()
            workers = children_of(daemons.running["vcpud-0"].pid)
            assert len(workers) == 2
            terminate(daemons.running[told])
            statuses = {name: daemons.ends(name) for name in DAEMONS}
            assert statuses == {name: 143 if name == told else 1 for name in DAEMONS}
            assert "ended by SIGTERM" in daemons.log(told)
            for name in set(DAEMONS) - {told}:
                assert re.search("lost|ended by another process", daemons.log(name).splitlines()[-1])
            assert all(state_of(pid) in "XZ" for pid in workers)
            assert not list(daemons.memory.iterdir()) and not (daemons.files / "swap").exists()
        finally:
            for daemon in daemons.running.values():
                daemon.kill()
                daemon.wait()


@pytest.mark.parametrize("killed", DAEMONS)
def test_a_peer_that_is_killed_is_named(daemons: Daemons, killed: str) -> None:
    for name in DAEMONS:
        daemons.start(name, "--log-level", "INFO")
    daemons.until_windows()
    daemons.running[killed].kill()
    for name in set(DAEMONS) - {killed}:
        assert daemons.ends(name) == 1
        assert re.search("lost|ended by another process|was ended", daemons.log(name).splitlines()[-1])


def test_guestsched_notices_that_hostd_is_gone_before_there_are_vcpus(daemons: Daemons) -> None:
    daemons.start("hostd")
    daemons.start("guest-0")
    daemons.until_report("metrics-guest-0")
    daemons.running["hostd"].kill()
    assert daemons.ends("guest-0") == 1
    assert daemons.log("guest-0").splitlines() == ["guestsched: lost hostd: it does not answer any more"]


def test_a_second_hostd_is_refused(daemons: Daemons) -> None:
    daemons.start("hostd")
    daemons.until_report("metrics-hostd")
    first = daemons.running["hostd"]
    assert daemons.start("hostd").wait(DEADLINE_S) == 2 and "another hostd runs there" in daemons.log("hostd")
    first.kill()
    first.wait()


def test_hostd_starts_where_one_was_killed(daemons: Daemons) -> None:
    first = daemons.start("hostd")
    daemons.until_report("metrics-hostd")
    first.kill()
    first.wait()
    assert (daemons.files / "swap").exists()
    (daemons.files / "metrics-hostd.json").unlink()
    second = daemons.start("hostd")
    daemons.until_report("metrics-hostd")
    terminate(second)
    assert daemons.ends("hostd") == 143 and not (daemons.files / "swap").exists()
