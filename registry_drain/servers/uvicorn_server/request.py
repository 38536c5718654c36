"""One request of uvicorn's, known from inside: the ``cycle`` behind its ``send``, and how its client is sent away.

Theory of operation: uvicorn adds the ``default_headers`` of the cycle to those of the application when an answer
begins, and closes behind ``Connection: close``. So a cycle whose answer has yet to begin is given a class whose
``default_headers`` say it. That is decided at the very last moment, for uvicorn forgets requests that were pipelined
behind such an answer. ``receive`` stays ours: what uvicorn takes for a client that has left gets no answer any more.

Sources: ``uvicorn/protocols/http/h11_impl.py`` and ``httptools_impl.py`` of uvicorn 0.30 and 0.54.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable
from typing import Any

from registry_drain.servers.http.answers import CLOSE, send_with_close, without_close
from registry_drain.servers.http.asgi_types import Message, Receive, Scope, Send
from registry_drain.servers.http.served_request import InsideRequest
from registry_drain.servers.uvicorn_server.connection import connection_of, has_more


def send_last(scope: Scope, send: Send, message: Message) -> Awaitable[None]:
    """Say ``Connection: close``, unless more requests wait on the connection: an :class:`ASGIMiddleware`'s farewell."""
    if message["type"] == "http.response.start":
        connection = connection_of(send)
        if connection is not None and has_more(connection):
            return send(without_close(message))
    return send_with_close(scope, send, message)


class CycleRequest(InsideRequest):
    """See the module."""

    @staticmethod
    def knows(_receive: Receive, send: Send) -> bool:
        """Whether ``send`` is a cycle's."""
        cycle = getattr(send, "__self__", None)
        return connection_of(send) is not None and hasattr(cycle, "default_headers") and hasattr(cycle, "__dict__")

    @property
    def has_started(self) -> bool:
        """Whether the answer has begun; True if the cycle is hidden, so that nothing is sent in its place."""
        return bool(getattr(self._cycle, "response_started", True))

    @property
    def _cycle(self) -> Any:
        return getattr(self._send, "__self__", None)

    def send_away(self) -> None:
        """Have the answer say ``Connection: close``, unless more requests wait by then."""
        cycle = self._cycle
        if not self.has_started and hasattr(cycle, "default_headers"):
            cycle.__class__ = _leaving(cycle.__class__)


@functools.cache
def _leaving(kind: type) -> type:
    if hasattr(kind, "default_headers"):
        return kind  # it is one already
    return type(kind.__name__, (kind,), {"default_headers": property(_headers_with_close)})


def _headers_with_close(cycle: Any) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = vars(cycle)["default_headers"]
    connection = connection_of(cycle.send)
    return headers if connection is None or has_more(connection) else [*headers, CLOSE]
