"""ASGI middleware: counts requests and WebSockets, sends clients away politely, refuses what can no longer be served.

Theory of operation: a request is in flight until the application returns, so what it does behind its answer (background
tasks) is waited for, too. The stop runs in threads; the middleware watches the stop state, and does what is to do in
the event loop that its first call came in. When draining begins WebSockets are closed, spread over time so that
reconnecting clients do not all come at once; shortly before the cut-off, applications that wait for the end of their
client (server-sent events, long polls) are told ``http.disconnect``; and :meth:`ASGIMiddleware.cut_off`, which the
server's adapter calls, cancels the tasks of what is left, and awaits them.

Rules:

1. Nothing is added to a request's messages while the instance is listed, but a test of one flag; and not even that
   where the server is known from inside. What such a request began as is what it is to its end: when the instance is
   delisted those in flight are sent away by the server's own objects.
2. The middleware cancels nothing by itself: that belongs to the adapter, which knows when the drain is over.
3. A cancelled request whose answer has not begun is answered, 503 and without ``Retry-After``: the application may have
   done part of its work, so nobody is invited to send it again.
4. One event loop for each middleware. Under other loops than asyncio (trio) it counts, refuses and sends
   ``Connection: close``; it closes and cancels nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from asyncio import current_task
from collections.abc import Coroutine, Iterable
from contextlib import suppress

from registry_drain.phases import Phase
from registry_drain.servers.current_request import TrackedRequest, serving
from registry_drain.servers.http.answers import answer, refuse_websocket, send_with_close
from registry_drain.servers.http.asgi_types import ASGIApplication, Receive, Scope, Send
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, RequestPolicy, Verdict
from registry_drain.servers.http.served_request import (
    Farewell,
    ForeignRequest,
    InsideRequest,
    ServedRequest,
    ServedRequests,
    peer_of,
)
from registry_drain.servers.http.websocket import WebSocket
from registry_drain.servers.in_flight import InFlight, InFlightRequest

logger = logging.getLogger(__name__)

_CLOSE_EVERY_S = 0.010
_CLOSE_AT_ONCE = 20
"""WebSockets that are closed together, and the seconds between two such batches: 2,000 in a second, or faster if half
of the time that is left is not enough for all of them.
"""

_NOTICE_S = 1.0
"""Seconds before the cut-off at which ``http.disconnect`` is told; a tenth of the drain if that is less."""
_NOTICE_AGAIN_S = 0.050
"""Seconds until it is told to who had not read its body then, or has come since."""


class ASGIMiddleware:
    """Wraps an ASGI 3 application. ``lifespan`` passes through.

    Args:
        app: the application.
        in_flight: counts its requests, and knows where the stop is; a new one if None.
        health_check_paths: exact paths that are no sign of callers.
        readiness_path: is answered here, 200 or 503; see :class:`~registry_drain.servers.http.policy.RequestPolicy`.
        refuses_when_sealed: refuse what comes once the listener is closed; see there.
        retry_after: seconds; see there.
        farewell: for adapters: sends a message of an answer once the instance is delisted; default: the head with
            ``Connection: close``.
        inside: for adapters: what requests are of a server that is known from inside.

    Attributes:
        in_flight: the requests. A WebSocket is one, as long as it is open.

    Raises:
        ConfigurationError: see RequestPolicy.
    """

    def __init__(
        self,
        app: ASGIApplication,
        in_flight: InFlight | None = None,
        *,
        health_check_paths: Iterable[str] = (),
        readiness_path: str = "",
        refuses_when_sealed: bool = False,
        retry_after: int = 1,
        farewell: Farewell = send_with_close,
        inside: type[InsideRequest] | None = None,
    ) -> None:
        self.in_flight = InFlight() if in_flight is None else in_flight
        self._app = app
        self._stop_state = self.in_flight.stop_state
        self._policy = RequestPolicy(
            self._stop_state,
            health_check_paths=health_check_paths,
            readiness_path=readiness_path,
            refuses_when_sealed=refuses_when_sealed,
            retry_after=retry_after,
        )
        self._has_readiness = bool(readiness_path)
        self._health_check_paths = self._policy.health_check_paths
        self._served = ServedRequests(self.in_flight, farewell)
        self._inside = inside
        self._new_request: type[ServedRequest] = ServedRequest
        self._websockets: dict[int, WebSocket] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_met_server = False
        self._closing: asyncio.Task[None] | None = None
        self._stop_state.watch(self._on_phase)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, WebSocket, or lifespan."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        if not self._has_met_server:
            self._meet_server(receive, send)
        # Here and not in a coroutine of its own, which each request would pay for.
        if (self._stop_state.is_stopping or self._has_readiness) and await self._answers(scope, receive, send):
            return
        kind = self._new_request  # What all of a kind have is read faster from their class.
        request = kind(scope, receive, send, self._served)
        if self._health_check_paths and scope["path"] in self._health_check_paths:
            self._served.take_back(request)
        token = serving.set(request)
        if kind.stands_before_receive:
            receive = request.receive
        if kind.stands_before_send:
            send = request.send
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not request.is_cut:
                raise
            await request.cut()
        finally:
            del self._served.active[request]
            request.task = None  # or the task, its context and the request would be a circle
            if kind.stands_before_send:
                serving.reset(token)  # an application may be called by another one's handler, in its context

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.serve_lifespan(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the server's lifespan on to the application."""
        await self._app(scope, receive, send)

    def use(self, farewell: Farewell, inside: type[InsideRequest]) -> None:
        """Take the server for one that is known from inside; see the constructor's arguments. Before any request."""
        self._served.farewell = farewell
        self._inside = inside

    async def _answers(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer in place of the application if that is due; return whether it was."""
        if self._stop_state.is_delisted and self._new_request is self._inside:
            self._send_requests_away()  # before this one begins, and not when the loop gets to it
        verdict = self._policy.verdict(scope["path"])
        if verdict is Verdict.SERVE:
            return False
        status, body = 503, REFUSAL
        if verdict is Verdict.ANSWER_READINESS:
            status, body = (503, STOPPING) if self._stop_state.is_stopping else (200, READY)
        retry_after, farewell = self._policy.retry_after, self._served.farewell
        await answer(scope, receive, send, status, body, retry_after=retry_after, farewell=farewell)
        return True

    async def cut_off(self, timeout: float = 0.25) -> tuple[InFlightRequest, ...]:
        """Cancel the tasks of what is in flight, wait at most ``timeout`` seconds for them, and return what it was.

        For the server's adapter, in the event loop of the requests. A request that is still there afterwards ignores
        its cancellation.
        """
        if self._closing is not None:
            self._closing.cancel()
        left = self.in_flight.snapshot()
        me = current_task() if self._loop is not None else None
        tasks = []
        served: list[ServedRequest | WebSocket] = [*self._served.all(), *self._websockets.values()]
        for each in served:
            if each.task is not None and each.task is not me:
                each.is_cut = True
                each.task.cancel()
                tasks.append(each.task)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=timeout)
            for task in stuck:
                logger.warning("%r does not end although it was cancelled", task)
        return left

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if self._stop_state.is_draining or self._policy.verdict(path) is Verdict.REFUSE:
            await refuse_websocket(scope, receive, send, retry_after=self._policy.retry_after)
            return
        if self._loop is None:
            self._find_loop()
        in_flight = self.in_flight
        key = in_flight.begin(f"WEBSOCKET {path}", peer_of(scope))
        token = serving.set(TrackedRequest(in_flight, key))
        websocket = self._websockets[key] = WebSocket(receive, send)
        websocket.task = current_task() if self._loop is not None else None
        try:
            await self._app(scope, websocket.receive, websocket.send)
        except asyncio.CancelledError:
            if not websocket.is_cut:
                raise
            with suppress(OSError):
                await websocket.close_now()
        finally:
            del self._websockets[key]
            serving.reset(token)
            in_flight.end(key)

    def _meet_server(self, receive: Receive, send: Send) -> None:
        self._has_met_server = True
        self._find_loop()
        if self._loop is None:
            self._new_request = ForeignRequest
        elif self._inside is not None and not self._stop_state.is_delisted and self._inside.knows(receive, send):
            self._new_request = self._inside

    def _find_loop(self) -> None:
        self._served.thread_id = threading.get_ident()
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        self._served.has_tasks = self._loop is not None
        if self._stop_state.is_draining:
            self._begin_closing()

    def _on_phase(self, phase: Phase) -> None:
        # In the stop's thread.
        loop = self._loop
        if loop is None or not self._stop_state.is_delisted:
            return
        with suppress(RuntimeError):  # closed: nothing is in flight there
            loop.call_soon_threadsafe(self._send_requests_away)
            if phase.value >= Phase.DRAINING.value:
                loop.call_soon_threadsafe(self._begin_closing)

    def _send_requests_away(self) -> None:
        self._new_request = ServedRequest
        for request in self._served.all():
            request.send_away()

    def _begin_closing(self) -> None:
        """Begin, or begin again because there is less time than it seemed."""
        if self._loop is None or self._stop_state.phase.value > Phase.DRAINING.value:
            return
        if self._closing is not None:
            self._closing.cancel()
        self._closing = self._loop.create_task(self._send_away())

    async def _send_away(self) -> None:
        """Close WebSockets, some at a time; insist at half of the time; tell the rest shortly before the end."""
        left = self._stop_state.time_left() or 0.0
        ends_at = asyncio.get_running_loop().time() + left
        websockets = list(self._websockets.values())
        random.shuffle(websockets)
        batch = max(_CLOSE_AT_ONCE, int(len(websockets) * _CLOSE_EVERY_S / max(left / 2, _CLOSE_EVERY_S)) + 1)
        for start in range(0, len(websockets), batch):
            if start:
                await asyncio.sleep(_CLOSE_EVERY_S)
            await _all(websocket.close() for websocket in websockets[start : start + batch])
        await _sleep_until(ends_at - left / 2)
        await _all(websocket.close_now() for websocket in list(self._websockets.values()))
        await _sleep_until(ends_at - min(_NOTICE_S, left / 10))
        while requests := self._served.all():
            for request in requests:
                request.disconnect()
            await asyncio.sleep(_NOTICE_AGAIN_S)

    def __repr__(self) -> str:
        """Show the application and the counts."""
        return f"<ASGIMiddleware {self._app!r} in_flight={self.in_flight.count} websockets={len(self._websockets)}>"


async def _all(closings: Iterable[Coroutine[object, object, None]]) -> None:
    """Close together: a client that reads nothing must not keep the next one waiting."""
    for outcome in await asyncio.gather(*closings, return_exceptions=True):
        # The client is gone, or the application was faster: servers tell the latter by RuntimeError.
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError | RuntimeError):
            logger.error("a WebSocket could not be closed: %r", outcome)


async def _sleep_until(instant: float) -> None:
    await asyncio.sleep(max(instant - asyncio.get_running_loop().time(), 0.0))
