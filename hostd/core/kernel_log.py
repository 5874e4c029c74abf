"""What the host's kernel tells its operator: lines with the time they are of, few of them.

Follows lib/ratelimit.c: of what would repeat, ten lines in five seconds, and then how many were left out.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST = 10
"""DEFAULT_RATELIMIT_BURST."""
INTERVAL_NS = 5_000_000_000
"""DEFAULT_RATELIMIT_INTERVAL."""
HUNG_NS = 120_000_000_000
"""sysctl_hung_task_timeout_secs."""
HUNG_LINES_MAX = 10
"""sysctl_hung_task_warnings."""
LINES_MAX = 1000


@dataclass(slots=True)
class _Ratelimit:
    began_ns: int = -INTERVAL_NS
    told: int = 0
    missed: int = 0


class KernelLog:
    """Lines, oldest first; at most LINES_MAX are kept."""

    __slots__ = ("_hung", "_limits", "lines")

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._limits: dict[str, _Ratelimit] = {}
        self._hung: set[tuple[int, int, int]] = set()

    def alert(self, kind: str, text: str, now_ns: int) -> None:
        """pr_alert_ratelimited, of a place in the code that is called ``kind``."""
        limit = self._limits.setdefault(kind, _Ratelimit())
        if now_ns >= limit.began_ns + INTERVAL_NS:
            if limit.missed:
                self._tell(f"{kind}: {limit.missed} callbacks suppressed", now_ns)
            limit.began_ns, limit.told, limit.missed = now_ns, 0, 0
        if limit.told < BURST:
            limit.told += 1
            self._tell(text, now_ns)
        else:
            limit.missed += 1

    def sleeps(self, vm: int, vcpu: int, from_ns: int, until_ns: int, end_ns: int) -> None:
        """A vCPU thread sleeps for I/O, and khungtaskd tells if that is long and within the run (kernel/hung_task.c)."""
        at_ns = from_ns + HUNG_NS
        sleep = (vm, vcpu, from_ns)
        if until_ns <= at_ns or at_ns > end_ns or len(self._hung) >= HUNG_LINES_MAX or sleep in self._hung:
            return
        self._hung.add(sleep)
        self._tell(f"INFO: task CPU {vcpu}/KVM of VM {vm} blocked for more than 120 seconds", at_ns)

    def left_out(self) -> int:
        """How many lines were not told of late."""
        return sum(limit.missed for limit in self._limits.values())

    def _tell(self, text: str, at_ns: int) -> None:
        if len(self.lines) < LINES_MAX:
            self.lines.append(f"at {at_ns} ns: {text}")
