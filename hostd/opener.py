"""Opens the windows of virtual time, one after the other, and does what is to be done while all stand at a border."""

from __future__ import annotations

import logging
import threading
import time
from decimal import Decimal

from apf.clockcells import Waited
from apf.clockpage import ClockPage
from apf.messages import FOREVER_NS, NEVER_NS
from apf.process import Failure, PeerLost
from apf.serving import Patience, TurnServer, slowest
from hostd.config import HostdConfig
from hostd.io_fault_requests import IoFaultRequests
from hostd.shell import HostShell
from hostd.vms import Join, Vms

log = logging.getLogger(__name__)
_START_S = 60
_IDLE_NS = 200_000_000
"""It looks around at least so often."""


class _Pace:
    """How far virtual time may be: ``pace`` guest seconds a second of wall time, 0: as far as it gets."""

    def __init__(self, pace: Decimal, began_s: float) -> None:
        self.slows = pace > 0
        self._pace = float(pace)
        self._began_s = began_s

    def now_ns(self) -> int:
        """The limit now. A float decides when a window opens, never what happens in it."""
        return int((time.monotonic() - self._began_s) * self._pace * 1e9) if self.slows else NEVER_NS

    def wall_ns_until(self, time_ns: int) -> int:
        """Wall time until the limit has reached ``time_ns``."""
        return max(0, int((time_ns - self.now_ns()) / self._pace)) if self.slows else 0


class Opener(threading.Thread):
    """Opens the windows of virtual time, and ends the run when no vCPU will ask again or none gets on.

    A thread and not part of an event loop, for all vCPUs wait until it has opened the next window: it waits natively
    (``ClockPage.run_openings``) and comes up to Python only for border work, for arrivals, when VMs have ended, and
    when nothing happens for a while. What changes a host that runs is done here, while all stand at a border.

    Where the last of a window is a request of which hostd knows the answer, the thread that answers opens the next one
    itself (``_open_here``): two threads that wake each other for every fault would take longer than the fault.
    """

    def __init__(
        self,
        config: HostdConfig,
        turns: TurnServer,
        shell: HostShell,
        clock: ClockPage,
        vms: Vms,
        io_faults: IoFaultRequests,
    ) -> None:
        super().__init__(name="opener", daemon=True)
        self._config = config
        self._turns = turns
        self._shell = shell
        self._clock = clock
        self._vms = vms
        self._io_faults = io_faults
        self._window_ns = shell.core.config.window_ns
        self.run_seconds = 0.0  # wall time of all windows

    def run(self) -> None:
        """The thread: to the end of the run, which fails if this does."""
        try:
            self._run()
        except Exception as error:
            self._turns.failed(error)
            raise

    def _run(self) -> None:
        if not self._everybody_is_here():
            return
        log.info("all VMs are loaded and all vCPUs are here; the first window opens")
        self._vms.is_running = True
        clock, shell, window_ns = self._clock, self._shell, self._window_ns
        patience = Patience(self._config.scenario.host.patience_s)
        began_s = time.monotonic()
        pace = _Pace(self._config.scenario.pace, began_s)
        clock.set_limit(pace.now_ns())
        clock.set_border_due(shell.core.border_due_ns())
        self._turns.open_with(self._open_here)
        while not self._turns.is_over:
            match clock.run_openings(window_ns):
                case Waited.PARKED:
                    clock.beat()
                    clock.wait_arrivals(True, _IDLE_NS)
                case Waited.AHEAD:
                    clock.beat()
                    next_ns = clock.earliest_ns() // window_ns * window_ns
                    clock.wait_arrivals(True, min(_IDLE_NS, pace.wall_ns_until(next_ns)))
                    clock.set_limit(pace.now_ns())
                case Waited.ARRIVALS:
                    self._let_arrive(window_ns, pace)
                case Waited.ENDED:
                    self._let_leave()
                case Waited.BORDER_WORK:
                    self._work_at_border()
                case Waited.FINISHED:
                    self.run_seconds = time.monotonic() - began_s
                    log.info("all vCPUs have ended, after %d windows in %.1f s", clock.windows, self.run_seconds)
                    self._finish()
                case Waited.ABORTED:
                    self._turns.fail(PeerLost("the run was ended by another process"))
                case Waited.LATER:
                    if patience.lost(clock.virtual_ns() + clock.beats):
                        self._turns.fail(Failure(f"no progress for {patience.seconds} s; {slowest(clock)}"))

    def _open_here(self) -> None:
        """In a thread that answers, which has the turns' lock."""
        try:
            while self._clock.open_next(self._window_ns):
                self._work_at_border()
        except Exception as error:
            self._turns.failed(error)
            raise

    def _finish(self) -> None:
        """No vCPU will ask again."""
        failure = self._vms.why_all_lost()
        if failure is None:
            self._turns.finish()
        else:
            self._turns.fail(failure)

    def _work_at_border(self) -> None:
        self._work()
        if self._vms.wants_to_join:  # perhaps for the place of one that is gone now
            self._turns.ask_for_clock()

    def _work(self) -> None:
        shell, clock = self._shell, self._clock
        shell.border(clock.border_ns)
        clock.set_border_due(shell.core.border_due_ns())

    def _let_leave(self) -> None:
        """VMs none of whose vCPUs will ask again leave the host, unless that is at its end too."""
        clock, shell, vms = self._clock, self._shell, self._vms
        clock.note_ended()
        if clock.border_ns >= self._config.scenario.end_ns:
            return
        leaving = vms.ended()
        if not leaving:
            return
        self._work()
        for vm in leaving:
            shell.leave(vm, clock.border_ns, intact=vm not in vms.lost)
            vms.left(vm)
            log.info("VM %d has left at %d ns", vm, clock.border_ns)
        clock.set_border_due(shell.core.border_due_ns())
        if vms.wants_to_join:  # perhaps for a place that is free now
            self._turns.ask_for_clock()

    def _let_arrive(self, window_ns: int, pace: _Pace) -> None:
        """Let VMs join, or guests take their arrivals: at the border, or as late as pace and guests allow."""
        clock, vms = self._clock, self._vms
        time_ns = clock.border_ns
        if pace.slows:
            latest_ns = min(clock.earliest_ns(), pace.now_ns()) // window_ns * window_ns
            time_ns = max(time_ns, latest_ns)
        if clock.has_arrivals(self._turns.entry):
            clock.give_back(self._turns.entry)
            self._io_faults.take(time_ns, vms.events["joined"])
            for join in vms.take_joins():
                self._let_join(join, time_ns, window_ns)
            return
        clock.grant(time_ns)
        clock.beat()
        clock.wait_arrivals(False, _IDLE_NS)

    def _let_join(self, join: Join, time_ns: int, window_ns: int) -> None:
        """Load a VM, which starts then; later, if its place still holds pages of the VM before it."""
        clock, shell, vms = self._clock, self._shell, self._vms
        start_ns = max(time_ns, -(-shell.core.gone_ns(join.vm) // window_ns) * window_ns)
        earliest_ns = clock.earliest_ns()
        if earliest_ns < FOREVER_NS and start_ns > earliest_ns // window_ns * window_ns:
            vms.put_back(join)
            return
        clock.beat()
        shell.load(join.vm, join.segments, start_ns)
        clock.beat()
        clock.enter(self._config.participants(join.vm), start_ns)
        vms.joined(join, start_ns)
        log.info("VM %d joins at %d ns", join.vm, start_ns)

    def _everybody_is_here(self) -> bool:
        """Wait until all VMs are loaded and all vCPUs attached; nobody can have opened a window before."""
        deadline_s = time.monotonic() + max(_START_S, self._config.scenario.host.patience_s)
        for event, what in (
            (self._vms.all_loaded, "a VM to be loaded"),
            (self._turns.all_attached, "a vCPU to attach"),
        ):
            while not event.wait(0.2):
                if self._turns.is_over:
                    return False
                if time.monotonic() > deadline_s:
                    self._turns.fail(Failure(f"waited in vain for {what}"))
                    return False
        return True
