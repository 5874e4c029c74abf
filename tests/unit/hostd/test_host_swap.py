"""Swap slots and frames."""

from __future__ import annotations

import pytest

from hostd.core.frames import Frames
from hostd.core.swap import SwapArea


def test_slots_ascend_skip_used_ones_and_wrap() -> None:
    swap = SwapArea(4)
    assert [swap.allocate() for _ in range(4)] == [0, 1, 2, 3]
    swap.free(1)
    swap.free(3)
    assert [swap.allocate(), swap.allocate()] == [1, 3]
    assert swap.in_use == 4
    with pytest.raises(AssertionError, match="full"):
        swap.allocate()


def test_a_slot_freed_twice_is_a_bug() -> None:
    swap = SwapArea(4)
    swap.free(swap.allocate())
    with pytest.raises(AssertionError, match="slot 0 freed twice"):
        swap.free(0)


def test_frames_are_reused_oldest_first_and_come_back_not_young() -> None:
    frames = Frames(2)
    assert [frames.take(7), frames.take(8)] == [0, 1]
    frames.mark_young([0, 1])
    frames.release(1)
    frames.release(0)
    assert [frames.take(9), frames.take(10)] == [1, 0]
    assert not any(frames.young)
    assert list(frames.owner) == [10, 9]
