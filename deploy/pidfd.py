"""Ending a process of ours that is no child of this one, through a descriptor of it: a pid may change its owner."""

from __future__ import annotations

import os
import select
import signal

from deploy.clusters import started_ticks

STOP_S = 15.0
"""Wall s that ending a cluster may take (LocalCluster.close promises ten)."""


def end_process(pid: int, grace_s: float, ticks: int | None = None) -> None:
    """Wait for the end of process ``pid``: for ``grace_s``, then after SIGTERM, then after SIGKILL.

    With ``ticks`` only if it is the process that started then.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if ticks is not None and started_ticks(pid) != ticks:
            return
        if not _ended(descriptor, grace_s):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if not _ended(descriptor, STOP_S):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                _ended(descriptor, STOP_S)
    except ProcessLookupError:
        return  # it ended between two looks
    finally:
        os.close(descriptor)


def _ended(descriptor: int, wait_s: float) -> bool:
    """Whether the process of a pidfd has ended, or does within ``wait_s``."""
    return bool(select.select([descriptor], [], [], wait_s)[0])
