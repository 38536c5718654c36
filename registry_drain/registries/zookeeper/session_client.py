"""From which address a session is connected: what an operator wants to know of a live owner.

Only the servers know, and tell by the four-letter word ``cons``, each of its own connections. Most ensembles allow it
to nobody (``4lw.commands.whitelist``), it is not authenticated, and it cannot be asked by TLS: so this is a courtesy,
asked for within a second, and whatever goes wrong is an empty answer.
"""

from __future__ import annotations

import logging
import re
import socket
import threading

from registry_drain.clock import Deadline
from registry_drain.registries.zookeeper.settings import SessionSettings

log = logging.getLogger(__name__)

_MOST_SECONDS = 1.0
"""For all servers together; a healthy one answers in milliseconds."""
_MOST_BYTES = 4_000_000
"""Of one answer: some 20,000 connections."""
_LINE = re.compile(r"^ /(?P<address>\S+?)\[\d+\]\(.*\bsid=0x(?P<session>[0-9a-f]+)\b", re.MULTILINE)


def client_of(session_text: str, settings: SessionSettings, deadline: Deadline) -> str:
    """Return ``address:port`` of the client that holds a session, or nothing if no server tells.

    Never raises, and takes a second at most.
    """
    if settings.tls is not None:
        return ""
    found: list[str] = []
    is_done = threading.Event()

    def ask() -> None:
        for host in settings.hosts.split(","):
            if found or limit.is_past:
                break
            try:
                address = address_in(_cons(host, limit), session_text)
            except (OSError, ValueError) as error:
                log.debug("%s does not say who %s is: %s", host, session_text, error)
                continue
            if address:
                found.append(address)
        is_done.set()

    limit = deadline.capped(_MOST_SECONDS)
    # In a thread because looking up a name knows no time limit.
    threading.Thread(target=ask, name="registry-drain-zookeeper-cons", daemon=True).start()
    limit.wait(is_done)
    return found[0] if found else ""


def address_in(answer: str, session_text: str) -> str:
    """Return the address of a session in an answer to ``cons``, or nothing."""
    for match in _LINE.finditer(answer):
        if f"0x{match['session']}" == session_text:
            return match["address"]
    return ""


def _cons(host: str, limit: Deadline) -> str:
    name, _, port = host.rpartition(":")
    with socket.create_connection((name.strip("[]"), int(port)), timeout=max(limit.remaining(), 0.001)) as connection:
        connection.sendall(b"cons")
        data = b""
        while len(data) < _MOST_BYTES and (remaining := limit.remaining()) > 0:
            connection.settimeout(remaining)
            received = connection.recv(65_536)
            if not received:
                break
            data += received
    return data.decode("utf-8", "replace")
