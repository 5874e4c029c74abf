"""A task leads only the lives its transition table allows."""

from __future__ import annotations

import pytest
from guest_fakes import task as new_task

from guestsched.core.task import TABLE, Task, TaskEvent, TaskState


def task_in(state: TaskState) -> Task:
    task = new_task(7)
    task.state = state
    return task


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("event", TaskEvent)
def test_every_pair_of_state_and_event_is_legal_or_refused(state: TaskState, event: TaskEvent) -> None:
    task = task_in(state)
    after = TABLE.after(state, event)
    if after is not None:
        task.move(event, 5)
        assert task.state is after
    else:
        with pytest.raises(AssertionError, match=f"{event.name} at 5 ns is illegal"):
            task.move(event, 5)
        assert task.state is state


def test_waiter_is_unkillable_and_only_ready_ends_its_wait() -> None:
    """E47: TASK_UNINTERRUPTIBLE, no timeout."""
    out = [rule.event for rule in TABLE.rules if rule.state is TaskState.APF_WAIT]
    assert out == [TaskEvent.PAGE_READY]


def test_dead_is_for_ever() -> None:
    assert not [rule.event for rule in TABLE.rules if rule.state is TaskState.DEAD]


def test_illegal_transition_tells_the_story() -> None:
    task = new_task(7)
    task.move(TaskEvent.PICKED, 10)
    task.move(TaskEvent.NOT_PRESENT, 20)
    with pytest.raises(AssertionError) as caught:
        task.move(TaskEvent.PICKED, 30)
    text = str(caught.value)
    assert "task 7 toy/7 on vCPU 0 is APF_WAIT" in text
    assert "10 ns: READY, PICKED" in text and "20 ns: RUNNING, NOT_PRESENT" in text


def test_result_reads_registers_by_name() -> None:
    row = new_task(7).result()
    assert row.values == (("count", 7),)
    assert (row.state, row.sum_exec_ns, row.nr_switches, row.killed) == ("READY", 0, 0, "")
