"""Tables of transitions as they are written down: who may go where, on what, and which kernel function says so.

A table is literal: one ``Rule`` a line. A machine asks it where an event leads (``after``), a test compares it with what
is documented, and ``diagram`` draws it for the package headers (``deploy.diagrams`` writes them there).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


@dataclass(frozen=True, slots=True)
class Rule(Generic[S, E]):
    """In ``state``, ``event`` leads to ``after``; ``source`` is the kernel function that does it."""

    state: S
    event: E
    after: S
    source: str


class Table(Generic[S, E]):
    """All rules of one machine. ``name`` is what its diagram is called."""

    def __init__(self, name: str, *rules: Rule[S, E]) -> None:
        self.name = name
        self.rules = rules
        self.transitions = {(rule.state, rule.event): rule.after for rule in rules}
        assert len(self.transitions) == len(rules), f"{name}: a rule twice"

    def after(self, state: S, event: E) -> S | None:
        """Where ``event`` leads from ``state``; None: nowhere, it cannot happen."""
        return self.transitions.get((state, event))

    def diagram(self) -> str:
        """The rules by state, a line each: state, event, next state, source."""
        states = max(len(_word(rule.state)) for rule in self.rules)
        events = max(len(_word(rule.event)) for rule in self.rules)
        nexts = max(len(_word(rule.after)) for rule in self.rules)
        lines, last = [f"{self.name}:", ""], None
        order = list(self.rules[0].state.__class__.__members__.values())
        for rule in sorted(self.rules, key=lambda rule: order.index(rule.state)):
            if last is not None and rule.state is not last:
                lines.append("")
            state = "" if rule.state is last else _word(rule.state)
            edge = f"{_word(rule.event)} ".ljust(events + 1, "-") + "->"
            lines.append(f"    {state:{states}} --- {edge} {_word(rule.after):{nexts}}".rstrip())
            lines.append(f"    {'':{states}}     {rule.source}")
            last = rule.state
        return "\n".join(lines)


def _word(member: Enum) -> str:
    return member.name.replace("_", " ") if isinstance(member.value, int) else str(member.value)
