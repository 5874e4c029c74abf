"""The contract of a core: the part of a daemon that decides.

A core has no I/O, clock, thread or randomness of its own. Its only way in is ``step(event, now_ns)``, which
returns the effects the shell has to carry out, in that order. Events are facts in the past tense, effects are
imperatives; both are structs that nobody changes (``message``). A failure arrives as an event. The same core runs
under two shells: the daemon's (gRPC, shared memory) and the twin's (one process); both must produce the same journal.
"""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Any, Protocol, TypeVar, dataclass_transform

import msgspec

T = TypeVar("T")
EventT = TypeVar("EventT", contravariant=True)
EffectT = TypeVar("EffectT")


@dataclass_transform(frozen_default=True)
def message(cls: type[T]) -> type[T]:
    """Make a struct of a class that is written as a dataclass is: its instances have slots, and nobody changes them.

    A struct of msgspec is made in a third of the time of a dataclass with slots, and in a tenth of that of a frozen one,
    and a fault is a score of events, effects and messages. It has a metaclass, so isinstance costs four times as much as
    a look at its type where the answer is no, and a class pattern of match more still: where it matters, compare types.
    """
    names = inspect.get_annotations(cls)
    fields = [(name, Any, cls.__dict__[name]) if name in cls.__dict__ else (name, Any) for name in names]
    rest = {
        name: value
        for name, value in cls.__dict__.items()
        if name not in names and name not in ("__annotations__", "__dict__", "__weakref__")
    }
    return msgspec.defstruct(cls.__name__, fields, namespace=rest, module=cls.__module__, frozen=True)  # type: ignore[return-value]  # a subclass of Struct that looks like cls


def changed(message: T, **fields: object) -> T:
    """A copy with other values in some fields."""
    return msgspec.structs.replace(message, **fields)  # type: ignore[type-var]  # message() has made its class


class Kind(Enum):
    """An enum whose members hash by identity, at a third of the cost: those of the cores are keys all the time."""

    __hash__ = object.__hash__


class Core(Protocol[EventT, EffectT]):
    """A deterministic state machine. Every time is an integer count of guest nanoseconds."""

    def step(self, event: EventT, now_ns: int) -> list[EffectT]:
        """Take one event that happened at ``now_ns`` and return what is to be done, in order."""

    def deadline_ns(self) -> int | None:
        """Guest time at which the core next wants to be stepped, or None."""

    def check(self) -> None:
        """Assert every invariant; raises AssertionError with the object's own history."""


class CoreError(Exception):
    """A peer or a scenario asked a core for something it cannot do. Own bugs are AssertionErrors instead."""
