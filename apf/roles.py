"""Who may call what: the one table of methods and roles.

The emulator has four kinds of peers. The role of a connection is the listener it came in by (``apf.listen``), or, on TCP
with certificates, what the peer's certificate says (``apf.tls``); never anything that a message says. One interceptor
(``apf.guard``) asks ``may`` before a method's handler is even looked up, so a method outside the role's set is answered
PERMISSION_DENIED and changes nothing. What is not in the table nobody may call.

| role     | is                                  | may                                                               |
|----------|-------------------------------------|-------------------------------------------------------------------|
| vcpu     | a vCPU worker                       | RunVcpu, TakeTraps                                                |
| guest    | a guestsched, towards hostd         | LoadVm                                                            |
| load     | a load generator, a viewer          | the load API except what steers: see below; GetMemory of hostd    |
| operator | who runs the host or a guest        | the whole load API: Spawn, Kill, Inject and Shutdown too;         |
|          |                                     | GetMemory and InjectIoFault of hostd                              |

A role is a level of trust, not an identity: whoever attaches as vCPU 0 *is* vCPU 0, and a vCPU that breaks its contract
fails its run, as a broken CPU would. What a peer that is not attached does never reaches a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType


class Role(StrEnum):
    """What a connection may do."""

    VCPU = "vcpu"
    GUEST = "guest"
    LOAD = "load"
    OPERATOR = "operator"


Roles = frozenset[Role]
ALL: Roles = frozenset(Role)
HOSTD: Roles = frozenset(Role)
"""Roles of hostd's peers."""
GUESTSCHED: Roles = frozenset({Role.VCPU})
"""Roles of guestsched's peers, those of its API apart."""
API: Roles = frozenset({Role.LOAD, Role.OPERATOR})
"""Roles of the peers of guestsched's API, who may also look at the host's memory."""

_VCPU = frozenset({Role.VCPU})
_GUEST = frozenset({Role.GUEST})
_OPERATOR = frozenset({Role.OPERATOR})
_TABLE: dict[str, dict[str, Roles]] = {
    "apf.v1.HostService": {
        "RunVcpu": _VCPU,
        "LoadVm": _GUEST,
        "InjectIoFault": _OPERATOR,
        "GetMemory": API,
    },
    "apf.v1.GuestService": {"TakeTraps": _VCPU},
    "apf.v1.LoadService": {
        "Access": API,
        "AccessStream": API,
        "Replay": API,
        "List": API,
        "Wait": API,
        "WatchCounters": API,
        "GetProfile": API,
        "Spawn": _OPERATOR,
        "Kill": _OPERATOR,
        "Inject": _OPERATOR,
        "Shutdown": _OPERATOR,
    },
    "grpc.health.v1.Health": {"Check": ALL, "Watch": ALL, "List": ALL},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": API},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": API},
}
METHODS: Mapping[str, Roles] = MappingProxyType(
    {f"/{service}/{method}": roles for service, methods in _TABLE.items() for method, roles in methods.items()}
)
"""Roles that may call each method, by its full name as on the wire."""


def may(roles: Iterable[Role], method: str) -> bool:
    """Whether a connection with ``roles`` may call ``method``."""
    return not METHODS.get(method, frozenset()).isdisjoint(roles)


def methods_of(roles: Iterable[Role]) -> frozenset[str]:
    """All methods that a connection with ``roles`` may call."""
    held = frozenset(roles)
    return frozenset(method for method in METHODS if may(held, method))


def role(text: str) -> Role:
    """The role of this name. Raises ValueError naming what is allowed."""
    try:
        return Role(text)
    except ValueError:
        raise ValueError(f"role = {text!r}: allowed: {', '.join(Role)}") from None
