"""``apf certs DIR``: an authority and one certificate a role, to try certificates with.

Real installations have an authority of their own; what it must put into a client's certificate is the URI
``apf:role:ROLE``. Servers (hostd, guestsched) are known by name and address. Extended key usage keeps the two apart: who
holds the certificate of a load generator cannot play a server. Keys are 0600 in a directory that is 0700.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from apf.listen import TlsFiles
from apf.roles import Role
from apf.tls import ROLE_URI
from deploy.clusters import BadInput

CA = "ca"
SERVERS = ("hostd",)
"""Who only serves; a guest is both."""
HOSTS = ("localhost", "127.0.0.1", "::1")
_BEFORE = timedelta(minutes=5)  # clocks differ


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that others are signed with, and its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(directory: Path, hosts: Sequence[str] = HOSTS, days: int = 30, *, keep: bool = False) -> list[Path]:
    """Write all of them; returns the files. Raises BadInput if some are there already, or, to ``keep``, not all are."""
    names = (CA, *SERVERS, *(str(each) for each in Role))
    paths = [directory / f"{name}{suffix}" for name in names for suffix in (".pem", "-key.pem")]
    there = [path.name for path in paths if path.exists()]
    if keep and len(there) == len(paths):
        return paths
    if there:
        raise BadInput(f"DIR = {directory}: has {', '.join(there)} already; name a new directory")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = make_authority(days)
        write(directory, CA, authority.cert, authority.key)
        for name in (*SERVERS, *Role):
            issue(directory, authority, str(name), hosts, days)
    except OSError as error:
        raise BadInput(f"DIR = {directory}: {error.strerror}") from error
    return paths


def files_of(directory: Path, name: str) -> TlsFiles:
    """The files to give a process that holds certificate ``name``."""
    return TlsFiles(directory / f"{name}.pem", directory / f"{name}-key.pem", directory / f"{CA}.pem")


def make_authority(days: int = 30) -> Authority:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "APF emulator, authority for trying out")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    cert = (
        _builder(name, name, key.public_key(), timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(cert, key)


def issue(
    directory: Path,
    authority: Authority,
    name: str,
    hosts: Sequence[str] = HOSTS,
    days: float = 30,
    roles: Sequence[str] | None = None,
) -> TlsFiles:
    """Write a certificate and key for ``name``; ``roles``: instead of the one that is called so."""
    key = ec.generate_private_key(ec.SECP256R1())
    if roles is None:
        roles = [name] if name in {str(each) for each in Role} else []
    serves = name in SERVERS or name == Role.GUEST
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{ROLE_URI}{each}") for each in roles]
    usages = []
    if serves:
        names += [_general_name(host) for host in hosts]
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    if roles or not serves:
        usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, authority.cert.subject, key.public_key(), timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    write(directory, name, builder.sign(authority.key, hashes.SHA256()), key)
    return files_of(directory, name)


def write(directory: Path, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """Put certificate and key into files; each appears whole."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, data, mode in (
        (directory / f"{name}-key.pem", pem, 0o600),
        (directory / f"{name}.pem", cert.public_bytes(serialization.Encoding.PEM), 0o644),
    ):
        scratch = path.with_suffix(".part")
        scratch.unlink(missing_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(scratch, path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    start = min(now - _BEFORE, now + lifetime - _BEFORE)  # a lifetime below 0 makes one that has expired
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + lifetime)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise BadInput(f"--host = {host!r}: expected a name or an address: {error}") from error
