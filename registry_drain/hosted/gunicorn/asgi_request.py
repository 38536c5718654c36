"""One request of gunicorn's own ASGI worker, known from inside: what its ``send`` closes over, and its ``receive``.

Theory of operation: ``send`` is a function inside the method that serves the request, so what is known of the request
stands in its closure. A request that *must close* is answered with ``Connection: close``, and gunicorn closes behind
the answer (it drops the application's own header). ``receive`` is a method of the body's receiver, which can be told
that the client has left while the answer still goes out.

Source: ``gunicorn/asgi/protocol.py`` of gunicorn 27.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from registry_drain.servers.http.answers import send_with_close
from registry_drain.servers.http.asgi_types import Message, Receive, Scope, Send
from registry_drain.servers.http.served_request import InsideRequest


def send_last(scope: Scope, send: Send, message: Message) -> Awaitable[None]:
    """Say ``Connection: close``, and have gunicorn do so: an :class:`ASGIMiddleware`'s farewell."""
    if message["type"] != "http.response.start":
        return send(message)
    request = _known_to(send, "request")
    if not hasattr(request, "must_close"):
        return send_with_close(scope, send, message)
    request.must_close = True
    return send(message)


class GunicornRequest(InsideRequest):
    """See the module."""

    stands_before_receive = False

    @staticmethod
    def knows(receive: Receive, send: Send) -> bool:
        """Whether these are what is described above; in HTTP/2 and in other versions they may not be."""
        return (
            hasattr(getattr(receive, "__self__", None), "signal_disconnect")
            and hasattr(_known_to(send, "request"), "must_close")
            and _known_to(send, "response_started") is False
        )

    @property
    def has_started(self) -> bool:
        """Whether the answer has begun."""
        return bool(_known_to(self._send, "response_started"))

    def send_away(self) -> None:
        """Have the answer say ``Connection: close``. Behind one that has begun gunicorn would close without a word."""
        request = _known_to(self._send, "request")
        if request is not None and not self.has_started:
            request.must_close = True

    def disconnect(self) -> None:
        """Tell it once the body is read; the receiver would not give it any more of that."""
        receiver: Any = getattr(self._receive, "__self__", None)
        if getattr(receiver, "_body_finished", False):
            receiver.signal_disconnect()


def _known_to(send: Send, name: str) -> Any:
    """Return what ``send`` has under ``name`` in its closure; None if there is no such thing."""
    names = getattr(getattr(send, "__code__", None), "co_freevars", ())
    cells = getattr(send, "__closure__", None) or ()
    return dict(zip(names, cells, strict=True))[name].cell_contents if name in names else None
