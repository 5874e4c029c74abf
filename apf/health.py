"""``python -m apf.health [HOST:PORT]``: does the daemon here answer? For the health checks of containers.

Asks for the daemon's /metrics, where hostd answers once it listens, guestsched once its VM is loaded, and vcpud once its
workers run. It runs every few seconds next to a daemon that wants the processor, so it imports nothing but a socket
(a gRPC client would take ten times as long to start), and reads no further than the status line.
"""

from __future__ import annotations

import socket
import sys

DEFAULT = "127.0.0.1:9100"
_TIMEOUT_S = 3.0
_STATUS_BYTES = 64


def answers(address: str, timeout_s: float = _TIMEOUT_S) -> str:
    """Why the daemon at ``HOST:PORT`` is not healthy; empty if it is."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return f"{address!r}: expected HOST:PORT"
    try:
        with socket.create_connection((host, int(port)), timeout_s) as asking:
            asking.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            said = asking.recv(_STATUS_BYTES)
    except OSError as error:
        return f"{address}: {error}"
    status = said.split(b"\r\n", 1)[0].decode("ascii", "replace")
    return "" if status.split(" ")[1:2] == ["200"] else f"{address}: answered {status!r}"


def main() -> None:
    """Exit with 0 if it answers, else with 1 and the reason on standard error."""
    why = answers(sys.argv[1] if len(sys.argv) > 1 else DEFAULT)
    if why:
        sys.exit(f"not healthy: {why}")


if __name__ == "__main__":
    main()
