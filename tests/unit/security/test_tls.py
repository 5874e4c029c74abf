"""Certificates: the right one, the wrong one, one that has expired, none; and others while the server runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from everything import Everything, serving, status

from apf import roles, tls
from apf.listen import Listener, Security, TlsFiles
from apf.process import Failure
from apf.roles import Role
from deploy import certs
from deploy.clusters import BadInput

pytestmark = pytest.mark.grpc

OK, DENIED, GONE = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE
LIST, KILL = "/apf.v1.LoadService/List", "/apf.v1.LoadService/Kill"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki") / "certs"
    certs.make(directory)
    return directory


@asynccontextmanager
async def server(files: TlsFiles, held: roles.Roles = roles.ALL) -> AsyncIterator[tuple[Everything, str]]:
    listener = Listener("127.0.0.1:0", held, by_certificate=True)
    async with serving([listener], Security(files)) as (everything, (address,)):
        yield everything, address


async def met(address: str, files: TlsFiles | None, method: str = LIST) -> grpc.StatusCode:
    # A connection of its own: channels to one address share one, and with it its handshake.
    async with tls.channel(address, files, (("grpc.use_local_subchannel_pool", 1),)) as channel:
        return (await status(channel, method))[0]


@pytest.mark.parametrize("role", Role)
def test_matrix(role: Role, pki: Path) -> None:
    async def run() -> None:
        async with (
            server(certs.files_of(pki, "hostd")) as (everything, address),
            tls.channel(address, certs.files_of(pki, role)) as channel,
        ):
            for method, allowed in roles.METHODS.items():
                everything.called.clear()
                code, _ = await status(channel, method)
                assert (code, everything.called) == ((OK, [method]) if role in allowed else (DENIED, [])), method

    asyncio.run(run())


def test_a_role_counts_only_where_the_daemon_has_such_peers(pki: Path) -> None:
    async def run() -> None:
        async with server(certs.files_of(pki, "hostd"), roles.HOSTD) as (everything, address):
            assert await met(address, certs.files_of(pki, "load"), KILL) is DENIED
            assert not everything.called

    asyncio.run(run())


def test_wrong_certificates(pki: Path, tmp_path: Path) -> None:
    other = certs.make_authority()
    certs.write(tmp_path, "ca", other.cert, other.key)
    stranger = certs.issue(tmp_path, other, "load")
    ours = load_authority(pki)
    made = tmp_path / "ours"
    made.mkdir()
    shutil.copy(pki / "ca.pem", made)
    expired = certs.issue(made, ours, "old", days=-1, roles=["load"])
    nobody = certs.issue(made, ours, "nobody", roles=[])
    unknown = certs.issue(made, ours, "unknown", roles=["root", "loader", "load/../operator"])
    several = certs.issue(made, ours, "several", roles=["load", "operator"])

    async def run() -> None:
        async with server(certs.files_of(pki, "hostd")) as (everything, address):
            assert await met(address, None) is GONE
            assert await met(address, TlsFiles(stranger.cert, stranger.key, pki / "ca.pem")) is GONE
            assert await met(address, expired) is GONE
            assert await met(address, certs.files_of(pki, "hostd")) is GONE  # a server's, not a client's
            assert await met(address, nobody) is DENIED
            assert await met(address, unknown) is DENIED
            assert not everything.called
            assert await met(address, several, KILL) is OK
            # The client checks its server as well.
            assert await met(address, stranger) is GONE
        async with server(certs.files_of(pki, "load")) as (everything, address):
            assert await met(address, certs.files_of(pki, "load")) is GONE  # a client's, not a server's

    asyncio.run(run())


def load_authority(pki: Path) -> certs.Authority:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key((pki / "ca-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certs.Authority(x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes()), key)


def test_certificates_are_read_anew(pki: Path, tmp_path: Path) -> None:
    live, new = tmp_path / "live", tmp_path / "new"
    shutil.copytree(pki, live)
    certs.make(new)
    old_client, new_client = certs.files_of(pki, "load"), certs.files_of(new, "load")

    def put(name: str, source: Path) -> None:
        shutil.copy(source / name, live / "part")
        os.replace(live / "part", live / name)

    async def run() -> None:
        async with (
            server(certs.files_of(live, "hostd")) as (_, address),
            tls.channel(address, old_client) as open_before,
        ):
            assert (await status(open_before, LIST))[0] is OK
            assert await met(address, new_client) is GONE
            put("hostd.pem", new)  # beside the old key: no pair, so all stays as it was
            assert await met(address, old_client) is OK
            (live / "ca.pem").write_text("half a fi")
            assert await met(address, old_client) is OK
            put("hostd-key.pem", new)
            put("ca.pem", new)
            assert await met(address, new_client) is OK
            assert await met(address, old_client) is GONE
            assert (await status(open_before, LIST))[0] is OK  # what is open stays open

    asyncio.run(run())


def test_a_server_starts_with_good_files_only(pki: Path) -> None:
    async def run() -> None:
        mixed = TlsFiles(pki / "hostd.pem", pki / "load-key.pem", pki / "ca.pem")
        with pytest.raises(Failure, match="--tls-cert"):
            async with server(mixed):
                pass

    asyncio.run(run())


def test_certs_are_private_and_made_once(pki: Path) -> None:
    for path in pki.glob("*-key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.stem for path in pki.glob("*.pem")} >= {"ca", "hostd", *Role}
    with pytest.raises(BadInput, match="already"):
        certs.make(pki)


def test_roles_in_a_certificate() -> None:
    assert tls.roles_in({"peer_uri": [b"apf:role:load", b"https://x"]}) == {Role.LOAD}
    assert tls.roles_in({"x509_common_name": [b"apf:role:load"]}) == frozenset()
    assert tls.roles_in({"peer_uri": [b"apf:role:\xff", b"apf:role:LOAD", b"apf:role:"]}) == frozenset()
