"""Where servers listen, with which rights: Unix sockets by role, TCP on the loopback, TCP with certificates.

*Unix sockets* are the default: one a role, each in a directory of its own, ``FILES/ROLE/DAEMON.sock``, so that a role
can be given away by a directory alone (``chgrp``, a bind mount into a container). A directory is 0700 and its socket
0600; with a group for the role 0710 and 0660, and then FILES itself may be searched, not listed (0711): all else in it
is 0600, because the emulator's processes run with umask 077. A directory that is not this user's own is refused:
somebody else could put their socket in the place of ours.

*TCP* has no such rights. Without certificates it is for the loopback only, and there every local user may do
everything that the daemon offers, so that grpcurl, ghz, k6 and Locust work out of the box; anywhere else a daemon
refuses to start. With certificates (``--tls-cert``, ``--tls-key``, ``--tls-ca``) both sides show one, and the role is
what the client's says.

This file knows no gRPC: who forks daemons checks their options with it.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import ipaddress
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apf.process import Failure
from apf.roles import Role, Roles, role
from apf.rundir import RunDir

_UNIX_PATH_MAX = 107
"""Bytes of a socket's path: sun_path without its end."""
_PORT_MAX = 65535
API_ON_SOCKETS = "unix"
"""An API that listens at the sockets of its roles only."""


class ListenError(ValueError):
    """An address or option that is not allowed; names it, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: this process's certificate and key, and the authority that peers' certificates come from."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Security:
    """What goes for all listeners of a process."""

    tls: TlsFiles | None = None
    groups: Mapping[Role, str] = field(default_factory=dict)
    """Unix group whose members may use a role's socket."""


PLAIN = Security()
"""No certificates, no groups."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A gRPC address, and the roles of who connects there; ``by_certificate``: as far as the certificate says so."""

    address: str
    roles: Roles
    by_certificate: bool = False
    own_directory: bool = False
    """The directory of the socket is ours to make and to give rights."""

    @property
    def path(self) -> Path | None:
        """Of the socket; None on TCP."""
        return Path(self.address.removeprefix("unix:")) if self.address.startswith("unix:") else None


def sockets(run: RunDir, daemon: str, roles: Iterable[Role]) -> tuple[Listener, ...]:
    """The Unix sockets of a daemon, one for each of its roles."""
    return tuple(Listener(run.address(each, daemon), frozenset({each}), own_directory=True) for each in sorted(roles))


def listener(option: str, text: str, roles: Roles, tls: TlsFiles | None) -> Listener:
    """What ``[ROLE=]ADDRESS`` means to a daemon with peers of ``roles``. Raises ListenError naming ``option``."""
    named, equals, address = text.partition("=")
    if equals and "/" not in named:
        try:
            held = frozenset({role(named)})
        except ValueError as error:
            raise ListenError(f"{option} = {text!r}: {error}") from None
        if not held <= roles:
            allowed = ", ".join(sorted(roles))
            raise ListenError(f"{option} = {text!r}: nobody connects here as {named}; allowed: {allowed}")
    else:
        held, address = roles, text
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//") or "."
        if not os.path.isabs(path):
            path = str(Path.cwd() / path)
        _check_path(path)
        return Listener(f"unix:{path}", held)
    host = tcp_host(option, address)
    if tls is not None:
        if equals:
            raise ListenError(f"{option} = {text!r}: with --tls-cert the role is what the client's certificate says")
        return Listener(address, held, by_certificate=True)
    if not _is_loopback(host):
        raise ListenError(
            f"{option} = {address!r}: without certificates TCP is for the loopback only (127.0.0.1, [::1], localhost); "
            "give --tls-cert, --tls-key and --tls-ca ('apf certs DIR' makes some to try), or listen on unix:PATH"
        )
    return Listener(address, held)


def tcp_host(option: str, address: str) -> str:
    """HOST of ``HOST:PORT``. Raises ListenError."""
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not host or (":" in host and bare == host) or not (port.isascii() and port.isdecimal()):
        raise ListenError(f"{option} = {address!r}: expected HOST:PORT or unix:PATH")
    if int(port) > _PORT_MAX:
        raise ListenError(
            f"{option} = {address!r}: expected HOST:PORT, port 0 to {_PORT_MAX}, 0 for any that is free"
        )
    return bare


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # any other name may mean any address, today or tomorrow


def _check_path(path: str) -> None:
    if len(os.fsencode(path)) > _UNIX_PATH_MAX:
        raise ListenError(f"{path}: the path of a socket has at most {_UNIX_PATH_MAX} bytes, this one {len(path)}")


# Rights ------------------------------------------------------------------------------------------------------------


def prepare(listeners: Sequence[Listener]) -> None:
    """Make the directories of sockets, for this user only. Call before binding. Raises Failure."""
    for each in listeners:
        path = each.path
        if path is None:
            continue
        try:
            _check_path(str(path))
        except ListenError as error:
            raise Failure(str(error)) from None
        if each.own_directory:
            _own_directory(path.parent)


def _own_directory(directory: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise Failure(f"socket directory {directory}: must be a directory of uid {os.geteuid()}, not a link")
        directory.chmod(0o700)
    except OSError as error:
        raise Failure(f"socket directory {directory}: {error.strerror}") from error


def give_rights(listeners: Sequence[Listener], groups: Mapping[Role, str]) -> None:
    """Let the groups of roles in. Call once the sockets are there. Raises Failure."""
    for each in listeners:
        path = each.path
        if path is None:
            continue
        wanted = {groups[held] for held in each.roles if held in groups} if len(each.roles) == 1 else set()
        try:
            if not wanted:
                path.chmod(0o600)
                continue
            number = _group(*wanted)
            os.chown(path, -1, number)
            path.chmod(0o660)
            if each.own_directory:  # last, so that nobody comes in before all is in place
                os.chown(path.parent, -1, number)
                path.parent.chmod(0o710)
                path.parent.parent.chmod(0o711)
        except OSError as error:
            raise Failure(f"socket {path}: {error.strerror}") from error


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise Failure(f"--socket-group: no group {name!r} on this machine") from None


# Options -----------------------------------------------------------------------------------------------------------


def add_options(options: argparse.ArgumentParser, serves: bool) -> None:
    """The options of a daemon that connects, and ``serves`` too, on the command line."""
    for name, text in (
        ("cert", "this daemon's certificate, for TCP"),
        ("key", "its private key"),
        ("ca", "the authority of its peers' certificates"),
    ):
        options.add_argument(f"--tls-{name}", type=Path, metavar="FILE.pem", help=text)
    if serves:
        options.add_argument(
            "--socket-group",
            action="append",
            default=[],
            metavar="ROLE=GROUP",
            help="let this Unix group use the role's socket (repeatable)",
        )


def security(cert: Path | None, key: Path | None, ca: Path | None, groups: Sequence[str] = ()) -> Security:
    """What the options say. Raises ListenError."""
    return Security(tls_files(cert, key, ca), dict(_role_group(text) for text in groups))


def tls_files(cert: Path | None, key: Path | None, ca: Path | None) -> TlsFiles | None:
    """The three files; None if none is given. Raises ListenError if some are missing."""
    given = {"--tls-cert": cert, "--tls-key": key, "--tls-ca": ca}
    missing = [option for option, path in given.items() if path is None]
    if cert is None or key is None or ca is None:
        if len(missing) < len(given):
            raise ListenError(f"{', '.join(missing)}: missing; --tls-cert, --tls-key and --tls-ca go together")
        return None
    for option, path in given.items():
        if path is not None and not os.access(path, os.R_OK):
            raise ListenError(f"{option} = {path}: expected a file that can be read")
    return TlsFiles(cert.absolute(), key.absolute(), ca.absolute())


def _role_group(text: str) -> tuple[Role, str]:
    named, equals, group = text.partition("=")
    try:
        held = role(named)
        if not equals or not group:
            raise ValueError("expected ROLE=GROUP")
        grp.getgrnam(group)
    except ValueError as error:
        raise ListenError(f"--socket-group = {text!r}: {error}") from None
    except KeyError:
        raise ListenError(f"--socket-group = {text!r}: no group {group!r} on this machine") from None
    return held, group
