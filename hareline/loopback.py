"""Ports on the loopback interface, and whether a broker answers there."""

from __future__ import annotations

import base64
import json
import random
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = 1


def free_ports(count: int) -> list[int]:
    """As many different TCP ports on which nothing listens, all checked at the same moment.

    They lie below the range from which the kernel takes the source ports of outgoing connections: a client
    that reconnects to a stopped broker in that range can be given the broker's own port, meet itself, and
    keep the port from the broker. Another process can still take one before it is used: try again then.
    """
    ceiling = _first_ephemeral_port()
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        for port in random.SystemRandom().sample(range(min(15000, ceiling - 2000), ceiling), 2000):
            if len(ports) == count:
                break
            probe = _bind(port)
            if probe is not None:
                held.append(probe)
                ports.append(port)
    finally:
        for probe in held:
            probe.close()
    if len(ports) < count:
        raise OSError(f"no {count} free TCP ports on {LOOPBACK}")
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    probe = _bind(port)
    if probe is None:
        return False
    probe.close()
    return True


def speaks_amqp(url: str, timeout: float = 2.0) -> bool:
    """Whether a broker starts the AMQP handshake at the URL (over TLS: any certificate). Logs nobody in."""
    parts = urlsplit(url)
    secure = parts.scheme == "amqps"
    port = parts.port or (5671 if secure else 5672)
    try:
        with socket.create_connection((parts.hostname or LOOPBACK, port), timeout) as plain:
            stream = _unverified_tls().wrap_socket(plain, server_hostname=parts.hostname) if secure else plain
            stream.sendall(_PROTOCOL_HEADER)
            # A broker answers with the method frame connection.start; one that is not ready closes instead.
            first = stream.recv(1)
            if stream is not plain:
                stream.close()
            return bool(first) and first[0] == _METHOD_FRAME
    except OSError:
        return False


def overview(management_url: str, user: str, password: str, timeout: float = 5.0) -> dict[str, Any] | None:
    """What the management API's ``/api/overview`` says, or None while it does not answer as it should."""
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 - an http URL that the caller made
        management_url.rstrip("/") + "/api/overview", headers={"Authorization": f"Basic {token}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on loopback
    try:
        with opener.open(request, timeout=timeout) as response:
            answer = json.load(response)
    except (OSError, ValueError, urllib.error.HTTPError):
        return None
    return answer if isinstance(answer, dict) and "rabbitmq_version" in answer else None


def _bind(port: int) -> socket.socket | None:
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # As servers do: connections of an earlier server that linger in TIME_WAIT do not count.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((LOOPBACK, port))
        # Without listening, two probes with SO_REUSEADDR could hold the same port.
        probe.listen(1)
    except OSError:
        probe.close()
        return None
    return probe


def _first_ephemeral_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32768
    # A machine that hands out nearly all ports leaves no safe range; any port is then as good as another.
    return first if first > 20000 else 60000  # noqa: PLR2004


def _unverified_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
