"""Swap slots and frames."""

from __future__ import annotations

import numpy as np
import pytest

from hostd.core.frames import Frames
from hostd.core.swap import NO_SLOT, SwapArea


def test_slots_ascend_skip_used_ones_and_wrap() -> None:
    swap = SwapArea(4)
    assert [swap.allocate(7) for _ in range(4)] == [0, 1, 2, 3]
    swap.free(1)
    swap.free(3)
    assert [swap.allocate(7), swap.allocate(7)] == [1, 3]
    assert swap.in_use == 4
    assert swap.allocate(7) == NO_SLOT
    assert swap.is_full


def test_slots_are_scarce_when_more_than_half_are_in_use() -> None:
    swap = SwapArea(4)
    slots = [swap.allocate(7) for _ in range(2)]
    assert not swap.is_full
    slots.append(swap.allocate(7))
    assert swap.is_full
    swap.free(slots[0])
    assert not swap.is_full


def test_a_slot_stands_for_zeros_until_it_is_freed() -> None:
    swap = SwapArea(2)
    slot = swap.allocate(7)
    swap.set_zero(slot, True)
    assert swap.is_zero(slot) and swap.are_zero(np.array([slot, 1, -1])).tolist() == [True, False, False]
    swap.free(slot)
    assert not swap.is_zero(slot)


def test_a_slot_freed_twice_is_a_bug() -> None:
    swap = SwapArea(4)
    swap.free(swap.allocate(7))
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
