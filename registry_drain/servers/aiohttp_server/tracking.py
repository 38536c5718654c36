"""What an aiohttp application gets: connections that count their requests, and requests that send clients away.

Theory of operation: aiohttp has a protocol object for each connection, whose ``_handle_request`` runs the handler and
writes the answer, in a task for each request. Ours is derived from it and stands around that one coroutine, so a
request is in flight until its last byte is handed to the kernel. An application's middleware was rejected: it would not
see the answer written, and the first one makes aiohttp take a path for each request that costs a fifth of its
throughput; a handler around the application's that writes the answer itself cost a sixth. The requests, too, are of a
class of ours: aiohttp asks each before its answer's head is written, as it sends ``on_response_prepare``, but without
the 2.6 µs that the first receiver of that signal costs.

Used without being public API of aiohttp: those two methods and the ``_cls`` of ``web.Application``'s request factory,
``web.Server``'s ``_kwargs`` (what it makes connections with), a request's ``_protocol``, and the queue of pipelined
requests.

Rules:

1. ``Connection: close`` only if no further request is there: aiohttp drops what was pipelined behind it.
2. A request that is cut off before its answer has begun is answered with 503, without ``Retry-After``: the handler may
   have done part of its work, so nobody is invited to send it again.

Sources: ``aiohttp/web_protocol.py`` (``RequestHandler.start``, ``_handle_request``), ``web_request.py``
(``Request._prepare_hook``), ``web_app.py`` and ``web_server.py`` of aiohttp 3.9 and 3.14.
"""

from __future__ import annotations

import asyncio
import select
import threading
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from aiohttp import hdrs, web

from registry_drain.instance import format_endpoint
from registry_drain.servers.current_request import serving
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, RequestPolicy, Verdict
from registry_drain.servers.http.served_request import CUT_OFF
from registry_drain.servers.in_flight import InFlight
from registry_drain.servers.loop_requests import LoopRequest, LoopRequests


class Request(web.Request, LoopRequest):
    """A request that knows when its answer begins, in flight while its handler runs.

    Attributes:
        handler_task: runs its handler.
        has_started: its answer has begun.
        is_cut: we have cancelled it.
        websocket: what it has become.
        is_sent_away: its WebSocket is being closed.
    """

    ATTRS = web.Request.ATTRS | {
        *("tracker", "arrived_before", "started_at", "given_name"),
        *("handler_task", "has_started", "is_cut", "websocket", "is_sent_away"),
    }
    """What may be set without aiohttp's warning, in the interpreter's development mode."""

    handler_task: asyncio.Task[object] | None
    has_started: bool
    is_cut = is_sent_away = False
    websocket: web.WebSocketResponse | None = None

    __hash__ = object.__hash__  # as aiohttp's, which is a Python function

    @property
    def name(self) -> str:
        """The method and the path."""
        return f"{self.method} {self.path}"

    @property
    def peer(self) -> str:
        """The caller, as ``host:port``."""
        transport = self.protocol.transport
        peer = None if transport is None else transport.get_extra_info("peername")
        return format_endpoint(peer[0], peer[1]) if type(peer) is tuple else str(peer or "")

    def _prepare_hook(self, response: web.StreamResponse) -> Coroutine[None, None, None]:
        # Its head is complete, and about to be written. Receivers of the application's signal have the last word.
        connection: Any = self._protocol
        served: Request | None = connection.served  # not what a middleware may have cloned from it
        if served is not None:
            served.has_started = True
            # The type is asked first because these classes are abstract ones, whose isinstance is slow.
            if type(response) is not web.Response and isinstance(response, web.WebSocketResponse):
                served.websocket = response
            elif served.tracker.stop_state.is_delisted and response.status >= 200 and not has_more(connection):
                response.force_close()
                response.headers[hdrs.CONNECTION] = "close"
        return _prepare_hook(self, response)


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
        self.served: Request | None = None
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
        served: Any = request  # a Request, for so they are made
        requests = tracking.requests
        # As LoopRequest's constructor has it.
        served.tracker = requests
        served.arrived_before = requests.last_arrival_at
        served.started_at = requests.last_arrival_at = requests.now()
        requests.total += 1
        requests.active[served] = self.served = served
        served.handler_task = current_task()
        served.has_started = False
        if tracking.health_check_paths and request.path in tracking.health_check_paths:
            requests.take_back(served)
        serving.set(served)  # in the context of this request's own task
        try:
            return await _handle_request(self, request, start_time, request_handler)
        except asyncio.CancelledError:
            if not served.is_cut or served.has_started:
                raise
            return await _cut(request), False
        finally:
            # The task's context refers to what it serves: a cycle, which would keep the garbage collector busy.
            self.served = served.handler_task = None
            if tracking.state.is_delisted:
                self.ended_at = self._loop.time()
            del requests.active[served]


_prepare_hook = web.Request._prepare_hook  # noqa: SLF001 - cheaper to call than by super()
_handle_request = web.RequestHandler._handle_request  # noqa: SLF001 - cheaper to call than by super()


class Tracking:
    """Counts one application's requests. For its event loop.

    Args:
        in_flight: the server's.
        policy: decides what becomes of a request.

    Attributes:
        requests: those in flight.
        health_check_paths: the policy's.
        handler: the server's; what else answers a request is aiohttp's own.
        state: the server's.
        has_readiness: whether there is a readiness path.
    """

    def __init__(self, in_flight: InFlight, policy: RequestPolicy) -> None:
        self.requests = LoopRequests(in_flight)
        self.health_check_paths = policy.health_check_paths
        self.handler: object = None
        self.state = in_flight.stop_state
        self.has_readiness = bool(policy.readiness_path)
        self._policy = policy

    @property
    def served(self) -> list[Request]:
        """What is being served now; a handler may outlive its connection."""
        return [each for each in self.requests.active.copy().values() if isinstance(each, Request)]

    def attach(self, server: web.Server) -> Callable[[], Connection]:
        """Return what makes the connections of ``server``. In its loop."""
        self.handler = server.request_handler
        self.requests.thread_id = threading.get_ident()
        of_class: Any = server.request_factory

        def new_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Any:
            return of_class(message, payload, protocol, writer, task, Request)  # a third of what a partial takes

        server.request_factory = new_request
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
