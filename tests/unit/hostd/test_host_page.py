"""The transition table of guest pages."""

from __future__ import annotations

import pytest

from hostd.core.page import TABLE, PageEvent, Pages, PageState


def test_every_pair_of_state_and_event_does_what_the_table_says_or_raises() -> None:
    for state in PageState:
        for event in PageEvent:
            pages = Pages((1,))
            pages.state[0] = state
            after = TABLE.transitions.get((state, event))
            if after is None:
                with pytest.raises(AssertionError, match=f"{event.name} in state {state.name}"):
                    pages.move(0, event, 1)
                assert pages.state[0] == state
            else:
                pages.move(0, event, 1)
                assert pages.state[0] == after


def test_an_illegal_transition_tells_the_page_s_story() -> None:
    pages = Pages((2, 2))
    pages.move(3, PageEvent.ZERO_FILLED, 10)
    pages.move(2, PageEvent.ZERO_FILLED, 11)
    pages.move(3, PageEvent.PICKED, 20)
    with pytest.raises(AssertionError, match=r"10 NONE ZERO_FILLED\n20 RESIDENT PICKED$"):
        pages.move(3, PageEvent.PICKED, 30)
