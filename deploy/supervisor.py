"""The process behind ``apf up``: it owns one cluster from its start to its results.

In the background it is a daemon of the classic kind: forked twice, in a session of its own, its output in a log file.
Whoever started it reads from a pipe one line that says either where the cluster answers or why it does not. Until that
line a failure leaves nothing behind; after it the outcome stays in the cluster's file until ``apf down``.

This process forks the daemons, so it never imports gRPC; whether the API really answers is checked by who started it.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from io import RawIOBase
from multiprocessing import connection
from pathlib import Path
from typing import Any

from apf import process
from apf.listen import PLAIN, Security
from apf.process import EXIT_FAILED, EXIT_STOPPED, Failure, StopRequested, describe_exit
from apf.scenario import Scenario
from deploy import bench
from deploy.clusters import Clusters, Record, started_ticks
from deploy.local import LocalCluster
from deploy.pidfd import STOP_S, end_process
from deploy.scraper import Prometheus, Scraping
from deploy.vms import VmWatch

_POLL_S = 0.1
_FORK_S = 10.0

Tell = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: a run in one mode, its API at gRPC address ``api``, and how long (wall s) its start may take.

    ``arrivals``: where its log of arrivals goes at the end, however that comes. ``scraping``: its own Prometheus.
    ``security``: of the API.
    """

    scenario: Scenario
    record: Record
    api: str
    start_s: float
    log_level: str
    arrivals: Path | None = None
    scraping: Scraping | None = None
    log_format: str = "text"
    security: Security = PLAIN


class Outcome:
    """How a supervised run ended: ``document`` of its results, or ``why`` there is none."""

    def __init__(self, document: dict[str, Any] | None, why: str = "", code: int = 0) -> None:
        self.document = document
        self.why = why
        self.code = code


def started_by(order: Order, pid: int) -> Record:
    """The order's record with process ``pid`` as its owner."""
    return order.record.model_copy(update={"pid": pid, "started_ticks": started_ticks(pid)})


def supervise(order: Order, clusters: Clusters, tell: Tell) -> Outcome:
    """Run the order to its end. ``tell`` is called once, when the cluster answers.

    The cluster's file says ``running`` from then on, and afterwards ``ended`` or ``failed``.
    """
    record = started_by(order, os.getpid())
    document, why, code = None, "", EXIT_FAILED
    try:
        clusters.replace(record)
        with (
            LocalCluster(order.scenario, api=order.api, security=order.security) as cluster,
            ExitStack() as ended,
        ):
            record = record.model_copy(
                update={"run_memory": str(cluster.run.memory), "run_files": str(cluster.run.files)}
            )
            clusters.replace(record)
            record = _answering(cluster, record, order.start_s)
            # Ended before the cluster removes the run's directories, where its data is.
            if order.scraping is not None:
                prometheus = ended.enter_context(
                    Prometheus(order.scraping, cluster.run.files / "prometheus", order.start_s)
                )
                record = record.model_copy(update={"prometheus": prometheus.address})
            clusters.replace(record)
            tell(record)
            watch = VmWatch(cluster, record, clusters.replace)
            try:
                document = bench.document(order.scenario, [cluster.wait(watch)])
            finally:
                record = watch.record
                for vm in cluster.vms:
                    if order.arrivals is not None and cluster.arrivals(vm).exists():
                        target = order.arrivals.with_name(f"{order.arrivals.name}.{vm}") if vm else order.arrivals
                        shutil.copyfile(cluster.arrivals(vm), target)
                if order.arrivals is not None and cluster.run.io_faults.exists():
                    shutil.copyfile(cluster.run.io_faults, order.arrivals.with_name(f"{order.arrivals.name}.host"))
        Path(record.result).write_text(json.dumps(document, indent=2) + "\n")
        code = 0
    except Failure as failure:
        why = str(failure)
    except StopRequested:
        why, code = describe_exit(EXIT_STOPPED), EXIT_STOPPED
    except KeyboardInterrupt:
        why, code = "was interrupted", EXIT_STOPPED
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:  # an error of ours must not leave the file saying "running"
        why = f"{type(error).__name__}: {error}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if record.status == "running":
        clusters.replace(record.model_copy(update={"status": "failed" if why else "ended", "why": why}))
    return Outcome(document, why, code)


def _answering(cluster: LocalCluster, record: Record, start_s: float) -> Record:
    """``record`` with the addresses of the cluster, once all its daemons have left them. Raises Failure."""
    deadline_s = time.monotonic() + start_s
    sentinels = [child.sentinel for child in cluster.processes]
    vms = range(cluster.scenario.host.vms)
    daemons = ["hostd", *(f"{daemon}-{vm}" for vm in vms for daemon in ("guest", "vcpud"))]
    while True:
        api = cluster.run.read_report("api-guest-0")
        ports = {name: cluster.run.read_report(f"metrics-{name}") for name in daemons}
        if api is not None and all(ports.values()):
            metrics = {name: f"127.0.0.1:{report['port']}" for name, report in ports.items() if report}
            found = {"api": api["address"], "sockets": api.get("sockets", {}), "metrics": metrics}
            return record.model_copy(update={"status": "running", **found})
        if connection.wait(sentinels, _POLL_S):
            cluster.wait()  # which says why
            raise Failure(
                f"the run ended before it answered; duration_s = {cluster.scenario.duration_s} is too short"
            )
        if time.monotonic() > deadline_s:
            missing = [name for name, report in ports.items() if not report] or ["guest-0"]
            raise Failure(f"no answer within {start_s:g} s; nothing was heard of {', '.join(missing)}")


def start(order: Order, clusters: Clusters) -> Record:
    """Start a supervisor in the background and wait until its cluster answers. Raises Failure; then nothing is left.

    The name must have been claimed. This process must not have imported gRPC yet; afterwards it may.
    """
    assert "grpc" not in sys.modules, "the supervisor would inherit gRPC"
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Whom an interrupt is to end must be known first.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(reading)
            _daemon(order, clusters, writing)
        os.close(writing)
        os.waitpid(child, 0)  # it only forks the supervisor
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            pid = int(_read_line(pipe, _FORK_S) or 0)
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                line = _read_line(pipe, order.start_s + STOP_S)
            except BaseException:
                end_process(pid, 0.0)
                _remove(clusters, order.record)
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    told = json.loads(line) if line else {"start_failed": f"the supervisor died{_last_lines(order.record)}"}
    if "start_failed" in told:
        end_process(pid, STOP_S)
        _remove(clusters, order.record)
        raise Failure(told["start_failed"])
    return Record.model_validate(told)


def _remove(clusters: Clusters, record: Record) -> None:
    """Remove what a start that failed has left, if its supervisor could not."""
    clusters.remove(clusters.find(record.name) or record)


def _daemon(order: Order, clusters: Clusters, writing: int) -> None:
    """The two forks; the grandchild becomes the supervisor. Does not return.

    The working directory stays: paths in a scenario may be relative.
    """
    code = EXIT_FAILED
    try:
        os.setsid()
        if pid := os.fork():
            os.write(writing, b"%d\n" % pid)
            os._exit(0)
        os.umask(0o077)
        log = os.open(order.record.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        process.heed_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        process.start_logging(order.log_level, order.log_format)

        def tell(record: Record) -> None:
            os.write(writing, record.model_dump_json().encode() + b"\n")
            os.close(writing)

        outcome = supervise(order, clusters, tell)
        code = outcome.code
        if outcome.why:
            print(outcome.why, file=sys.stderr)
            found = clusters.find(order.record.name)
            if found is not None and not found.over:
                why = outcome.why + _last_lines(order.record)
                clusters.remove(started_by(order, os.getpid()))
                os.write(writing, json.dumps({"start_failed": why[:4000]}).encode() + b"\n")
    finally:
        process.leave(code)


def _last_lines(record: Record) -> str:
    """The end of the log, as lines of their own, for who will not find it any more."""
    try:
        lines = Path(record.log).read_text(errors="replace").splitlines()[-10:]
    except OSError:
        return ""
    return "".join(f"\n  {line[:300]}" for line in lines)


def _read_line(pipe: RawIOBase, deadline_s: float) -> bytes:
    """One line from a pipe, without its end; empty if nobody can write one any more. Raises Failure at the deadline."""
    end_s = time.monotonic() + deadline_s
    got = b""
    while not got.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, end_s - time.monotonic()))
        if not ready:
            raise Failure(f"no answer within {deadline_s:g} s")
        piece = pipe.read(1)
        if not piece:
            return b""
        got += piece
    return got[:-1]
