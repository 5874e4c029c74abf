"""Gives access threads their work: accesses from outside, replays, and traces of their own (see ``access``)."""

from __future__ import annotations

from apf import registers as register_file
from apf.core import CoreError
from apf.messages import PAGE_SHIFT, PAGE_SIZE
from guestsched.core.access import BATCH_MAX, ENTRY_BYTES, WORDS_MAX, Access, Replay, Work, retired, ring_of
from guestsched.core.arrivals import (
    AccessArrived,
    AccessCancelled,
    AccessDone,
    Refusal,
    Refused,
    ReplayArrived,
    ReplayDone,
)
from guestsched.core.kernel import Kernel
from guestsched.core.process import Process
from guestsched.core.task import AccessList, Task, TaskEvent

_WORD = 8


class Feed:
    """Between what is to be accessed and the tasks that do it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    # From outside ----------------------------------------------------------------------------------------------------

    def access_arrived(self, arrived: AccessArrived, now_ns: int) -> None:
        """Queue an access, or refuse it."""
        process = self._served(arrived.ticket, arrived.process)
        if process is None:
            return
        gva, pages = process.plan.memory
        size = arrived.words * _WORD
        if not 0 < arrived.words <= WORDS_MAX or arrived.offset % _WORD or arrived.offset + size > pages * PAGE_SIZE:
            text = f"{size} bytes at offset {arrived.offset}: the memory of process {process.asid} has {pages} pages"
            self._refuse(arrived.ticket, Refusal.INVALID_ARGUMENT, text)
        elif process.accesses.full:
            text = f"process {process.asid}: {len(process.accesses.waiting)} accesses wait already"
            self._refuse(arrived.ticket, Refusal.RESOURCE_EXHAUSTED, text)
        else:
            address = gva + arrived.offset
            gfns = self._gfns(process, address, size)
            access = Access(arrived.ticket, address, arrived.words, arrived.write, now_ns, gfns)
            process.accesses.waiting.append(access)

    def replay_arrived(self, arrived: ReplayArrived, now_ns: int) -> None:
        """Queue a list of accesses, or refuse it."""
        process = self._served(arrived.ticket, arrived.process)
        if process is None:
            return
        pages = process.plan.memory[1]
        accesses = arrived.accesses
        for index in range(len(accesses)):
            if accesses[index].address + accesses[index].words * _WORD > pages * PAGE_SIZE:
                text = f"items[{index}]: the memory of process {process.asid} has {pages} pages"
                self._refuse(arrived.ticket, Refusal.INVALID_ARGUMENT, text)
                return
        process.accesses.replays.append(Replay(arrived.ticket, accesses, now_ns))

    def cancelled(self, arrived: AccessCancelled) -> None:
        """Take an access back if it still waits."""
        process = self._kernel.processes.get(arrived.process)
        if process is not None and process.accesses.cancel(arrived.ticket) is not None:
            self._refuse(arrived.ticket, Refusal.CANCELLED, "taken back before it began")

    def distribute(self, now_ns: int) -> None:
        """Wake access threads for what has arrived."""
        for process in self._kernel.processes.values():
            queue = process.accesses
            while queue.idle and (queue.waiting or queue.replays):
                task = self._kernel.tasks[queue.idle.popleft()]
                self.feed(task, now_ns)
                self._kernel.wake(task, TaskEvent.WOKEN, now_ns, None)

    def _served(self, ticket: int, asid: int) -> Process | None:
        process = self._kernel.processes.get(asid)
        if process is None:
            self._refuse(ticket, Refusal.NOT_FOUND, f"process {asid}: there is none")
        elif not self._kernel.has_access_threads(process):
            self._refuse(ticket, Refusal.FAILED_PRECONDITION, f"process {asid} has no access threads")
        else:
            return process
        return None

    def _refuse(self, ticket: int, why: Refusal, text: str) -> None:
        self._kernel.effects.append(Refused(ticket, why, text))

    def _gfns(self, process: Process, address: int, size: int) -> tuple[int, ...]:
        pieces = process.pieces(address, size, write=False)
        assert pieces is not None, f"{size} bytes at {address:#x} of process {process.asid}"
        return tuple(dict.fromkeys(gpa >> PAGE_SHIFT for gpa, _ in pieces))

    # Batches -----------------------------------------------------------------------------------------------------------

    def feed(self, task: Task, now_ns: int) -> bool:
        """Put the next batch into the task's ring; False if there is none now (see ``Work.resume_ns``)."""
        process, work = self._kernel.processes[task.asid], self._kernel.works[task.id]
        work.faults = []
        work.resume_ns = 0
        queue = process.accesses
        if work.own is None and not queue.waiting and queue.replays:
            replay = queue.replays.popleft()
            work.own, work.position, work.ticket = replay.accesses, 0, replay.ticket
            work.base, work.arrived_ns = process.plan.memory[0], replay.arrived_ns
            work.met.clear()
        if work.own is not None:
            work.outside, work.batch = False, self._own_batch(process, work, work.own, now_ns)
        else:
            work.outside, work.batch = True, queue.take_batch()
        if not work.batch:
            return False
        task.registers = register_file.replace(task.registers, rax=len(work.batch))
        ring = process.pieces(task.spec.ring, 1, write=True)
        assert ring is not None, f"ring of task {task.id}"
        task.copies.append((ring[0][0], ring_of(work.batch)))
        return True

    def _own_batch(self, process: Process, work: Work, own: AccessList, now_ns: int) -> list[Access]:
        batch: list[Access] = []
        while work.position < len(own) and len(batch) < BATCH_MAX:
            item = own[work.position]
            if item.at_ns > now_ns:
                if not batch:
                    work.resume_ns = item.at_ns
                break
            address = work.base + item.address
            gfns = self._gfns(process, address, item.words * _WORD)
            batch.append(Access(0, address, item.words, item.write, now_ns, gfns, item.think))
            work.position += 1
        return batch

    def ring_pieces(self, task: Task) -> tuple[tuple[int, int], ...]:
        """What the kernel wants to see of the task's ring when it is done with its batch."""
        work = self._kernel.works[task.id]
        if not (work.batch and work.outside):
            return ()
        size = len(work.batch) * ENTRY_BYTES
        pieces = self._kernel.processes[task.asid].pieces(task.spec.ring, size, write=False)
        assert pieces is not None, f"ring of task {task.id}"
        return tuple(pieces)

    def retire_outside(self, task: Task, ring: bytes, now_ns: int) -> None:
        """The task has performed a batch of accesses from outside and left ``ring``. CoreError if that is not whole."""
        work = self._kernel.works[task.id]
        if len(ring) != len(work.batch) * ENTRY_BYTES:
            raise CoreError(
                f"{len(ring)} bytes of the ring of task {task.id}, {len(work.batch)} entries were asked for"
            )
        for done in retired(work.batch, ring, work.faults):
            access = done.access
            met = "HIT" if done.met is None else done.met.name
            self._kernel.journal.record((now_ns, "retired", access.ticket, done.done_ns, met))
            self._kernel.effects.append(AccessDone(access.ticket, access.arrived_ns, done.done_ns, done.met, task.id))
        work.batch = []

    def retire_own(self, task: Task, now_ns: int) -> None:
        """The task has performed a batch of its own list."""
        work = self._kernel.works[task.id]
        if work.own is None:
            return
        for done in retired(work.batch, b"", work.faults):
            work.met[done.met] += 1
        work.batch = []
        if work.ticket and work.position == len(work.own):
            met = tuple(sorted(work.met.items(), key=lambda item: -1 if item[0] is None else item[0]))
            self._kernel.journal.record((now_ns, "replayed", work.ticket, len(work.own)))
            self._kernel.effects.append(ReplayDone(work.ticket, work.arrived_ns, now_ns, met, task.id))
            work.own, work.ticket = None, 0
