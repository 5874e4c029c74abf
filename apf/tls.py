"""Certificates on TCP: both sides show one, servers read theirs anew when the files change.

A server asks for its files at every handshake (gRPC's ``dynamic_ssl_server_credentials``, which works under grpc.aio as
well: the fetcher is called in the native poller). So a certificate is renewed by replacing files; connections that are
open stay open. Files that do not fit together (a new certificate beside the old key, a half-written file) are left alone
until they do, and what was used before goes on.

A client's role is a URI among the alternative names of its certificate: ``apf:role:load``. The authority decides who
gets which; a certificate without one may do nothing.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Mapping
from typing import Any

import grpc

from apf.limits import Options
from apf.listen import TlsFiles
from apf.process import Failure
from apf.roles import Role, Roles

log = logging.getLogger(__name__)
ROLE_URI = "apf:role:"
_NAMES = ("x509_subject_alternative_name", "peer_uri")
_Pem = tuple[bytes, bytes, bytes]


def channel(address: str, tls: TlsFiles | None, options: Options = ()) -> grpc.aio.Channel:
    """A channel to ``address``: with certificates if there are any and it is on TCP. Raises Failure."""
    if tls is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, client_credentials(tls), options=options)


def blocking_channel(address: str, tls: TlsFiles | None) -> grpc.Channel:
    """The same for a process without an event loop."""
    if tls is None or address.startswith("unix:"):
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, client_credentials(tls))


def client_credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    """What a client shows. Raises Failure."""
    cert, key, authority = _checked(tls)
    return grpc.ssl_channel_credentials(authority, key, cert)


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """What a server shows, and whom it lets in; follows the files. Raises Failure if they are no good now."""
    files = _Files(tls)
    return grpc.dynamic_ssl_server_credentials(files.configuration(), files.changed, True)


def roles_in(peer: Mapping[str, Any]) -> Roles:
    """The roles that a client's certificate gives, from the call's ``auth_context()``."""
    names = {bytes(value).decode(errors="replace") for key in _NAMES for value in peer.get(key, ())}
    known = {str(each) for each in Role}
    return frozenset(
        Role(name.removeprefix(ROLE_URI))
        for name in names
        if name.startswith(ROLE_URI) and name.removeprefix(ROLE_URI) in known
    )


class _Files:
    """The files of a server, and what was last read from them. gRPC asks from threads of its own."""

    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._stamp = _stamp(tls)
        self._pem = _checked(tls)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        cert, key, authority = self._pem
        return grpc.ssl_server_certificate_configuration([(key, cert)], authority)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The configuration if the files are others than before and good; None: as before."""
        with self._lock:
            try:
                stamp = _stamp(self._tls)
                if stamp == self._stamp:
                    return None
                pem = _checked(self._tls)
            except (Failure, OSError) as error:
                log.warning("certificates stay as they were: %s", error)
                return None
            self._stamp = stamp
            if pem == self._pem:
                return None
            self._pem = pem
            log.warning("certificates were read anew from %s", self._tls.cert)
            return self.configuration()


def _stamp(tls: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    stats = [os.stat(path) for path in (tls.cert, tls.key, tls.ca)]
    return tuple((found.st_mtime_ns, found.st_size, found.st_ino) for found in stats)


def _checked(tls: TlsFiles) -> _Pem:
    """The files' contents, of which certificate and key belong together. Raises Failure."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert, tls.key, password="")
        context.load_verify_locations(tls.ca)
        return tls.cert.read_bytes(), tls.key.read_bytes(), tls.ca.read_bytes()
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"--tls-cert = {tls.cert}, --tls-key = {tls.key}, --tls-ca = {tls.ca}: {error}") from error
