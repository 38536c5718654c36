"""For request handlers: name the request that this thread serves, mark where it begins and ends, see the drain coming.

Every function may be called from anywhere: outside a thread that an adapter serves a connection in, naming and marking
do nothing, so that handlers stay testable without a server.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from registry_drain.servers.connections import Connection


class _Serving(threading.local):
    connection: Connection | None = None


serving = _Serving()
"""What the calling thread serves; set by the adapters."""


def is_draining() -> bool:
    """Whether this thread's connection closes behind the answer: a handler that streams should come to an end."""
    connection = serving.connection
    return connection is not None and connection.connections.is_draining


def name_request(name: str, *, is_health_check: bool = False) -> None:
    """Name the request in flight, for reports: a method or a path, nothing secret.

    A health check's arrival does not count as a sign that callers still know this instance.
    """
    connection = serving.connection
    if connection is not None and connection.is_busy:
        connection.name = name
        if is_health_check:
            connection.take_for_health_check()


@contextmanager
def mark_request(name: str, *, is_health_check: bool = False) -> Iterator[None]:
    """The block is one request: its first bytes have been read before, and at its end the answer, if any, is written.

    For protocols in which the adapter cannot see the end of a request, because it has no answer. From the first mark
    on, only marks end requests on this connection. Where the protocol itself delimits requests (Thrift), this only
    names.
    """
    connection = serving.connection
    if connection is None:
        yield
        return
    connection.begin_mark()
    name_request(name, is_health_check=is_health_check)
    try:
        yield
    finally:
        connection.end_mark()
