"""WSGI middleware (PEP 3333): counts requests, sends clients away politely, refuses what can no longer be served.

Theory of operation: a request is in flight from the call of the application until the server closes the iterable that
it returned, streaming included. Whatever of the application runs in between, its generator too, knows the request
(:mod:`registry_drain.servers.current_request`).

Rules:

1. ``Connection`` is a hop-by-hop header, which PEP 3333 leaves to the server: some servers heed it (cheroot, uWSGI),
   some drop it (gunicorn, whose adapter has its own way), and two refuse the whole answer for it: those are left alone.
2. The server may serve a request in several threads, one after the other. So the context variable is set and reset
   around each step, and never left set in between.
3. A server that never closes the iterable breaks PEP 3333, but must not keep a drain waiting for ever: the request ends
   when the iterable is collected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from registry_drain.instance import format_endpoint
from registry_drain.servers.current_request import LiveRequest, serving
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, UNREAD_LIMIT, RequestPolicy, Verdict
from registry_drain.servers.in_flight import InFlight

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Headers = list[tuple[str, str]]

_REFUSE_HOP_BY_HOP = ("WSGIServer/", "waitress")
"""``SERVER_SOFTWARE`` of servers that raise AssertionError for the header (wsgiref, waitress)."""


class WSGIMiddleware:
    """Wraps a WSGI application. Thread-safe.

    Args:
        app: the application.
        in_flight: counts its requests, and knows where the stop is; a new one if None.
        health_check_paths: exact paths (``SCRIPT_NAME`` and ``PATH_INFO``) that are no sign of callers.
        readiness_path: is answered here, 200 or 503; see :class:`~registry_drain.servers.http.policy.RequestPolicy`.
        refuses_when_sealed: refuse what comes once the listener is closed; see there.
        retry_after: seconds; see there.
        sends_connection_close: whether to send ``Connection: close`` once the instance is delisted; None: to HTTP/1
            clients, of servers that do not refuse it.

    Attributes:
        in_flight: the requests.

    Raises:
        ConfigurationError: see RequestPolicy.
    """

    def __init__(
        self,
        app: WSGIApplication,
        in_flight: InFlight | None = None,
        *,
        health_check_paths: Iterable[str] = (),
        readiness_path: str = "",
        refuses_when_sealed: bool = False,
        retry_after: int = 1,
        sends_connection_close: bool | None = None,
    ) -> None:
        self.in_flight = InFlight() if in_flight is None else in_flight
        self._app = app
        self._stop_state = self.in_flight.stop_state
        self._sends_connection_close = sends_connection_close
        self._policy = RequestPolicy(
            self._stop_state,
            health_check_paths=health_check_paths,
            readiness_path=readiness_path,
            refuses_when_sealed=refuses_when_sealed,
            retry_after=retry_after,
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        policy = self._policy
        if self._stop_state.is_stopping or policy.readiness_path:
            verdict = policy.verdict(path)
            if verdict is Verdict.REFUSE:
                return self._answer(environ, start_response, 503, REFUSAL)
            if verdict is Verdict.ANSWER_READINESS:
                is_stopping = self._stop_state.is_stopping
                return self._answer(environ, start_response, *((503, STOPPING) if is_stopping else (200, READY)))
        in_flight = self.in_flight
        request = _Request(in_flight, environ, path)
        in_flight.begin_request(request, is_health_check=path in policy.health_check_paths)
        token = serving.set(request)
        try:
            body = self._app(environ, self._starting(environ, start_response))
            # Nothing of the application runs while a list is gone through.
            return _List(body, request) if type(body) is list else _tracked(body, environ, request)
        except BaseException:
            request.end()
            raise
        finally:
            serving.reset(token)

    def _starting(self, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """Return a ``start_response`` that adds ``Connection: close`` if, by the time it is called, that is due."""
        state = self._stop_state

        def start(
            status: str,
            headers: Headers,
            exc_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None = None,
            /,
        ) -> Callable[[bytes], object]:
            if state.is_delisted and self._may_send_close(environ):
                headers = _with_close(headers)
            # Not every server takes a third argument that is None.
            return start_response(status, headers) if exc_info is None else start_response(status, headers, exc_info)

        return start

    def _may_send_close(self, environ: WSGIEnvironment) -> bool:
        if not environ.get("SERVER_PROTOCOL", "").startswith("HTTP/1"):
            return False
        if self._sends_connection_close is None:
            return not environ.get("SERVER_SOFTWARE", "").startswith(_REFUSE_HOP_BY_HOP)
        return self._sends_connection_close

    def _answer(
        self, environ: WSGIEnvironment, start_response: StartResponse, status: int, body: bytes
    ) -> Iterable[bytes]:
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        if status == 503:
            headers.append(("Retry-After", self._policy.retry_after))
        if self._stop_state.is_delisted and self._may_send_close(environ):
            headers.append(("Connection", "close"))
        length = environ.get("CONTENT_LENGTH", "")
        if length.isdigit() and 0 < int(length) <= UNREAD_LIMIT:
            environ["wsgi.input"].read(int(length))
        start_response("200 OK" if status == 200 else "503 Service Unavailable", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def __repr__(self) -> str:
        """Show the application and the count."""
        return f"<WSGIMiddleware {self._app!r} in_flight={self.in_flight.count}>"


def _with_close(headers: Headers) -> Headers:
    connection = [value for name, value in headers if name.lower() == "connection"]
    if any("upgrade" in value.lower() for value in connection):
        return headers
    return [*(each for each in headers if each[0].lower() != "connection"), ("Connection", "close")]


class _Request(LiveRequest):
    """A request that can be ended by whoever is the last to have it."""

    tracker: InFlight

    def __init__(self, in_flight: InFlight, environ: WSGIEnvironment, path: str) -> None:
        # Without a call of the base class' own, which costs as much as all of this.
        self.tracker = in_flight
        self.thread_id = threading.get_ident()
        self._environ = environ
        self._path = path

    @property
    def name(self) -> str:
        return f"{self._environ['REQUEST_METHOD']} {self._path}"

    @property
    def peer(self) -> str:
        host, port = self._environ.get("REMOTE_ADDR", ""), str(self._environ.get("REMOTE_PORT", ""))
        return format_endpoint(host, int(port)) if host and port.isdigit() else host

    def end(self) -> None:
        """End it. Idempotent."""
        self.tracker.end(self)


def _tracked(body: Iterable[bytes], environ: WSGIEnvironment, request: _Request) -> Iterable[bytes]:
    file_wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(file_wrapper, type) and isinstance(body, file_wrapper) and _ends_by_close(body, request.end):
        return body  # still the server's own, which it knows how to send by sendfile(2)
    return (_SizedBody if isinstance(body, Sized) else _Body)(body, request)


def _ends_by_close(body: Any, end: Callable[[], None]) -> bool:
    """Make a file wrapper's ``close`` end the request; return False where the object does not allow that."""
    close = getattr(body, "close", None)

    def close_and_end() -> None:
        try:
            if close is not None:
                close()
        finally:
            end()

    with suppress(AttributeError, TypeError):
        body.close = close_and_end
        return True
    return False


class _List:
    """The list that an application returned; the request ends when it is closed."""

    __slots__ = ("_items", "_request")

    def __init__(self, items: list[bytes], request: _Request) -> None:
        self._items = items
        self._request: _Request | None = request

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def close(self) -> None:
        """End the request."""
        request, self._request = self._request, None
        if request is not None:
            request.end()

    __del__ = close


class _Body:
    """The iterable that an application returned; the request ends when it is closed."""

    __slots__ = ("_body", "_next", "_request")

    def __init__(self, body: Iterable[bytes], request: _Request) -> None:
        self._body = body
        self._request = request
        self._next: Callable[[], bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = serving.set(self._request)
        try:
            if self._next is None:
                self._next = iter(self._body).__next__
            return self._next()
        finally:
            serving.reset(token)

    def close(self) -> None:
        """End the request, whatever the application's own ``close`` does."""
        token = serving.set(self._request)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            serving.reset(token)
            self._request.end()

    def __del__(self) -> None:
        self._request.end()


class _SizedBody(_Body):
    """The same with a length, by which servers find out that there is one piece, and how long the answer is."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]  # it is Sized
