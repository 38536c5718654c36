"""What an aiohttp application gets: connections that count their requests, and a signal that sends clients away.

Theory of operation: aiohttp has a protocol object for each connection, whose ``_handle_request`` runs the handler and
writes the answer, in a task for each request. Ours is derived from it and stands around that one coroutine, so a
request is in flight until its last byte is handed to the kernel. An application's middleware was rejected: it would not
see the answer written, and the first one makes aiohttp take a path for each request that costs a fifth of its
throughput; a handler around the application's that writes the answer itself cost a sixth.

Used without being public API of aiohttp: that method, ``web.Server``'s ``_kwargs`` (what it makes connections with),
and the queue of pipelined requests.

Rules:

1. ``Connection: close`` only if no further request is there: aiohttp drops what was pipelined behind it.
2. A request that is cut off before its answer has begun is answered with 503, without ``Retry-After``: the handler may
   have done part of its work, so nobody is invited to send it again.

Sources: ``aiohttp/web_protocol.py`` (``RequestHandler.start``, ``_handle_request``) and ``web_server.py`` of aiohttp
3.9 and 3.14.
"""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import hdrs, web

from registry_drain.instance import format_endpoint
from registry_drain.servers.current_request import LiveRequest, serving
from registry_drain.servers.http.exchange import CUT_OFF
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, RequestPolicy, Verdict
from registry_drain.servers.in_flight import InFlight


class Served(LiveRequest):
    """One request that is being served.

    Attributes:
        task: serves it.
        has_started: its answer has begun.
        is_cut: we have cancelled it.
        websocket: what it has become.
        is_sent_away: its WebSocket is being closed.
    """

    # In the class, and not set for each request: most requests never change them.
    has_started = False
    is_cut = False
    websocket: web.WebSocketResponse | None = None
    is_sent_away = False

    def __init__(self, request: web.BaseRequest, in_flight: InFlight, thread_id: int) -> None:
        """Stand for what the current task serves."""
        # Without a call of the base class' own, which costs as much as all of this.
        self._request = request
        self._in_flight = in_flight
        self.stop_state = in_flight.stop_state
        self.thread_id = thread_id
        self.task: asyncio.Task[object] | None = asyncio.current_task()

    @property
    def name(self) -> str:
        """The method and the path."""
        return f"{self._request.method} {self._request.path}"

    @property
    def peer(self) -> str:
        """The caller, as ``host:port``."""
        transport = self._request.protocol.transport
        peer = None if transport is None else transport.get_extra_info("peername")
        return format_endpoint(peer[0], peer[1]) if type(peer) is tuple else str(peer or "")


class Connection(web.RequestHandler):
    """A connection that counts its requests.

    Attributes:
        served: the request that is being served.
        ended_at: when the last one ended, on the loop's clock; noted only once the instance is delisted.
    """

    __slots__ = ("_tracking", "ended_at", "served")

    def __init__(self, server: web.Server, tracking: Tracking) -> None:
        """Belong to ``server``."""
        super().__init__(server, loop=asyncio.get_running_loop(), **server._kwargs)  # noqa: SLF001 - no public way
        self._tracking = tracking
        self.served: Served | None = None
        self.ended_at: float | None = None

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        tracking = self._tracking
        answering = tracking.answering(request) if tracking.has_readiness or tracking.state.is_stopping else None
        if answering is not None or request_handler is not tracking.handler:  # or aiohttp answers what is no request
            return await _handle_request(self, request, start_time, answering or request_handler)
        in_flight, checks = tracking.in_flight, tracking.health_check_paths
        self.served = served = Served(request, in_flight, tracking.thread_id)
        in_flight.begin_request(served, is_health_check=bool(checks) and request.path in checks)
        serving.set(served)  # in the context of this request's own task
        try:
            return await _handle_request(self, request, start_time, request_handler)
        except asyncio.CancelledError:
            if not served.is_cut or served.has_started:
                raise
            return await _cut(request), False
        finally:
            # The task's context refers to what it serves: a cycle, which would keep the garbage collector busy.
            self.served = served.task = None
            if served.stop_state.is_delisted:
                self.ended_at = self._loop.time()
            in_flight.end(served)


_handle_request = web.RequestHandler._handle_request  # noqa: SLF001 - cheaper to call than by super()


class Tracking:
    """Counts one application's requests. For its event loop.

    Args:
        in_flight: the server's.
        policy: decides what becomes of a request.

    Attributes:
        in_flight: the server's.
        health_check_paths: the policy's.
        handler: the server's; what else answers a request is aiohttp's own.
        thread_id: the loop's thread.
        state: the server's.
        has_readiness: whether there is a readiness path.
    """

    def __init__(self, in_flight: InFlight, policy: RequestPolicy) -> None:
        self.in_flight = in_flight
        self.health_check_paths = policy.health_check_paths
        self.handler: object = None
        self.thread_id = 0
        self.state = in_flight.stop_state
        self.has_readiness = bool(policy.readiness_path)
        self._policy = policy

    @property
    def served(self) -> list[Served]:
        """What is being served now; a handler may outlive its connection."""
        return [each for each in self.in_flight.keys() if isinstance(each, Served)]  # noqa: SIM118 - no mapping

    def install(self, app: web.Application) -> None:
        """Add the signal, once; before the application is frozen."""
        app.on_response_prepare.append(self._prepare)

    def attach(self, server: web.Server) -> Callable[[], Connection]:
        """Return what makes the connections of ``server``. In its loop."""
        self.handler = server.request_handler
        self.thread_id = threading.get_ident()
        return lambda: Connection(server, self)

    def answering(self, request: web.BaseRequest) -> Callable[[web.BaseRequest], Awaitable[web.Response]] | None:
        """Return a handler for what the application does not see."""
        answer = self._answer(self._policy.verdict(request.path))
        if answer is None:
            return None

        async def handle(_: web.BaseRequest) -> web.Response:
            return answer

        return handle

    def _answer(self, verdict: Verdict) -> web.Response | None:
        """Return the answer to what the application does not see."""
        if verdict is Verdict.SERVE:
            return None
        if verdict is Verdict.ANSWER_READINESS and not self.state.is_stopping:
            return web.Response(body=READY, content_type="text/plain")
        body = REFUSAL if verdict is Verdict.REFUSE else STOPPING
        headers = {"Retry-After": self._policy.retry_after}
        answer = web.Response(status=503, body=body, content_type="text/plain", headers=headers)
        answer.force_close()
        return answer

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        # An answer is about to be written.
        connection: Any = request.protocol
        served: Served | None = getattr(connection, "served", None)
        if served is not None:
            served.has_started = True
        # The type is asked first because these classes are abstract ones, whose isinstance is slow.
        if type(response) is not web.Response and isinstance(response, web.WebSocketResponse):
            if served is not None:
                served.websocket = response
        elif self.state.is_delisted and response.status >= 200 and not has_more(connection):
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"  # the headers were made before this signal is sent


async def _cut(request: web.BaseRequest) -> web.Response:
    """Answer a request that was cut off."""
    answer = web.Response(status=503, body=CUT_OFF, content_type="text/plain")
    answer.force_close()
    with suppress(ConnectionError):  # the client is gone; aiohttp finds out by itself
        await answer.prepare(request)
        await answer.write_eof()
    return answer


def has_more(connection: web.RequestHandler) -> bool:
    """Whether bytes of a further request are here already, be it in aiohttp's queue or in the kernel."""
    if getattr(connection, "_messages", None):
        return True
    transport = connection.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    # An end of file is readable as well: aiohttp is about to close such a connection by itself.
    return bool(poller.poll(0))
