"""One HTTP connection of uvicorn: whether it is between two requests, and whether more of them wait.

Theory of operation: uvicorn has a protocol object for each connection (h11's or httptools'), and one ``cycle`` in it
for the request that came last. The two differ in where a request that has come too early waits: in h11's buffer
(``conn.trailing_data``), or in a queue (``pipeline``); and while uvicorn does not read, in the kernel.

Sources: ``uvicorn/protocols/http/h11_impl.py`` and ``httptools_impl.py`` of uvicorn 0.30 and 0.54.
"""

from __future__ import annotations

import select
from typing import Any

from registry_drain.servers.http.asgi_types import Send


def is_http(connection: Any) -> bool:
    """Whether it speaks HTTP/1.1; WebSockets are the middleware's to close."""
    return hasattr(connection, "cycle") and hasattr(connection, "transport")


def is_between_requests(connection: Any) -> bool:
    """Whether every request that uvicorn has read anything of was answered."""
    cycle = connection.cycle
    if cycle is not None and not cycle.response_complete:
        return False
    if _is_begun(connection):
        return False
    return not has_more(connection)


def _is_begun(connection: Any) -> bool:
    """Whether httptools has read the beginning of a request, and not yet its headers' end."""
    if not hasattr(connection, "parser"):
        return False
    scope, cycle = connection.scope, connection.cycle
    return scope is not None and (cycle is None or cycle.scope is not scope)


def has_more(connection: Any) -> bool:
    """Whether bytes of a further request are here already."""
    if getattr(connection, "pipeline", None):
        return True
    trailing = getattr(getattr(connection, "conn", None), "trailing_data", None)
    if trailing is not None and trailing[0]:
        return True
    return _is_readable(connection.transport)


def _is_readable(transport: Any) -> bool:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    # An end of file is readable as well: uvicorn is about to close such a connection by itself.
    return bool(poller.poll(0))


def connection_of(send: Send) -> Any:
    """Return the connection that an application's ``send`` belongs to; None for a server other than uvicorn."""
    on_response = getattr(getattr(send, "__self__", None), "on_response", None)
    return getattr(on_response, "__self__", None)
