"""Addresses that are allowed, TCP that is refused, the rights of sockets."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from everything import serving

from apf import listen, roles
from apf.listen import Listener, ListenError, Security, TlsFiles, listener, sockets
from apf.process import Failure
from apf.roles import Role
from apf.rundir import RunDir

pytestmark = pytest.mark.grpc

TLS = TlsFiles(Path("a"), Path("b"), Path("c"))


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.3.2.1:80", "localhost:1", "[::1]:65535"])
def test_the_loopback_needs_no_certificates(address: str) -> None:
    assert listener("--listen", address, roles.HOSTD, None) == Listener(address, roles.HOSTD)
    assert listener("--listen", f"guest={address}", roles.HOSTD, None) == Listener(address, frozenset({Role.GUEST}))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:1", "example.org:1", "localhost.example.org:1"])
def test_elsewhere_tcp_needs_certificates(address: str) -> None:
    with pytest.raises(ListenError, match=r"--listen = .*--tls-cert"):
        listener("--listen", address, roles.HOSTD, None)
    assert listener("--listen", address, roles.HOSTD, TLS) == Listener(address, roles.HOSTD, by_certificate=True)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("8080", "expected HOST:PORT"),
        (":80", "expected HOST:PORT"),
        ("::1:80", "expected HOST:PORT"),
        ("127.0.0.1:x", "expected HOST:PORT"),
        ("127.0.0.1:65536", "port 0 to 65535"),
        ("dns:///localhost:1", "expected HOST:PORT"),
        ("unix-abstract:name", "expected HOST:PORT"),
        ("root=127.0.0.1:1", "allowed: vcpu, guest, load, operator"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_addresses_that_are_none(address: str, why: str) -> None:
    with pytest.raises(ListenError, match=why):
        listener("--listen", address, roles.HOSTD, None)


def test_a_role_that_a_daemon_has_no_peers_of() -> None:
    with pytest.raises(ListenError, match="nobody connects here as vcpu; allowed: load, operator"):
        listener("--api", "vcpu=127.0.0.1:1", roles.API, None)


def test_with_certificates_an_address_has_no_role() -> None:
    with pytest.raises(ListenError, match="certificate says"):
        listener("--listen", "vcpu=127.0.0.1:1", roles.HOSTD, TLS)


@pytest.mark.parametrize("daemon", ["hostd", "guestsched"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--listen", "0.0.0.0:0"), "--tls-cert, --tls-key and --tls-ca"),
        (("--tls-cert", "x"), "--tls-key, --tls-ca: missing"),
        (("--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x"), "--tls-cert = x: expected a file"),
        (("--socket-group", "vcpu=no-such-group"), "no group 'no-such-group'"),
        (("--socket-group", "boss=root"), "allowed: vcpu, guest, load, operator"),
    ],
)
def test_daemons_refuse_to_start(daemon: str, options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    common = ("--memory", str(tmp_path), "--files", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", daemon, *common, *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and told in " ".join(done.stderr.split())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_rights(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name

    async def run() -> None:
        run = RunDir(tmp_path, tmp_path)
        tmp_path.chmod(0o700)
        async with serving(sockets(run, "d", Role)):
            for role in Role:
                assert (mode(tmp_path / role), mode(tmp_path / role / "d.sock")) == (0o700, 0o600)
            assert mode(tmp_path) == 0o700
        security = Security(groups={Role.LOAD: group})
        async with serving(sockets(run, "d", Role), security):
            assert (mode(tmp_path / "load"), mode(tmp_path / "load" / "d.sock")) == (0o710, 0o660)
            assert (tmp_path / "load" / "d.sock").stat().st_gid == os.getgid()
            assert (mode(tmp_path / "vcpu"), mode(tmp_path / "vcpu" / "d.sock")) == (0o700, 0o600)
            assert mode(tmp_path) == 0o711

    asyncio.run(run())


def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "load").symlink_to(elsewhere)
    with pytest.raises(Failure, match=r"socket directory .*load: must be a directory of uid"):
        listen.prepare(sockets(RunDir(tmp_path, tmp_path), "d", [Role.LOAD]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_connect() -> None:
    async def run(files: Path) -> None:
        files.chmod(0o711)
        async with serving(sockets(RunDir(files, files), "d", [Role.LOAD])):
            path = files / "load" / "d.sock"
            pid = os.fork()
            if pid == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                try:
                    socket.socket(socket.AF_UNIX).connect(str(path))
                except PermissionError:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0

    with tempfile.TemporaryDirectory() as files:
        asyncio.run(run(Path(files)))
