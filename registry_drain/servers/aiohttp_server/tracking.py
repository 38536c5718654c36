"""What an aiohttp application gets: a handler that counts its requests, and a signal that sends clients away.

Theory of operation: the server's request handler, which is the application with its middlewares, gets one around it.
An application's middleware would do, too, but the first one makes aiohttp take a path for each request that costs a
fifth of its throughput. aiohttp writes the answer when the handler has returned; so ours writes it itself (``prepare``
and ``write_eof``, which do nothing when they are called again), and a request is in flight until its last byte is
handed to the kernel. Everything used is public API of aiohttp, but for the server's ``request_handler`` (without an
underscore, not documented) and the queue of pipelined requests.

Rules:

1. ``Connection: close`` only if no further request is there: aiohttp drops what was pipelined behind it.
2. A request that is cut off before its answer has begun is answered with 503, without ``Retry-After``: the handler may
   have done part of its work, so nobody is invited to send it again.

Sources: ``aiohttp/web_protocol.py`` (``RequestHandler.start``, ``finish_response``) of aiohttp 3.9 and 3.14.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from registry_drain.instance import format_endpoint
from registry_drain.servers.current_request import TrackedRequest, serving
from registry_drain.servers.http.exchange import CUT_OFF
from registry_drain.servers.http.policy import READY, REFUSAL, STOPPING, RequestPolicy, Verdict
from registry_drain.servers.in_flight import InFlight

Connection = web.RequestHandler


class Served(TrackedRequest):
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

    def __init__(self, in_flight: InFlight, key: int) -> None:
        """Stand for what ``in_flight`` knows under ``key``, and the current task serves."""
        super().__init__(in_flight, key)
        self.task: asyncio.Task[object] | None = asyncio.current_task()


class Tracking:
    """Counts one application's requests. For its event loop.

    Args:
        in_flight: the server's.
        policy: decides what becomes of a request.

    Attributes:
        served: what is being served now, by connection.
        ended_at: when a connection's last request ended, on the loop's clock; noted only once the instance is delisted.
    """

    def __init__(self, in_flight: InFlight, policy: RequestPolicy) -> None:
        self.served: dict[Connection, Served] = {}
        self.ended_at: dict[Connection, float] = {}
        self._in_flight = in_flight
        self._state = in_flight.stop_state
        self._policy = policy

    def install(self, app: web.Application) -> None:
        """Add the signal, once; before the application is frozen."""
        app.on_response_prepare.append(self._prepare)

    def attach(self, server: web.Server) -> None:
        """Count what the server's handler serves, once; before the first connection."""
        handler: Any = server.request_handler

        def serve(request: web.Request) -> Awaitable[web.StreamResponse]:
            return self._serve(request, handler)

        server.request_handler = serve  # type: ignore[assignment]

    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        policy, state = self._policy, self._state
        if state.is_stopping or policy.readiness_path:
            answer = self._answer(policy.verdict(path))
            if answer is not None:
                return answer
        in_flight = self._in_flight
        is_health_check = path in policy.health_check_paths
        connection = request.protocol
        key = in_flight.begin(f"{request.method} {path}", _peer(connection), is_health_check=is_health_check)
        served = self.served[connection] = Served(in_flight, key)
        token = serving.set(served)
        try:
            return await _finished(request, await handler(request))
        except web.HTTPException as answer:
            await _finished(request, answer)
            raise
        except asyncio.CancelledError:
            if not served.is_cut or served.has_started:
                raise
            cut = web.Response(status=503, body=CUT_OFF, content_type="text/plain")
            cut.force_close()
            return await _finished(request, cut)
        finally:
            self.served.pop(connection, None)
            if state.is_delisted:
                self.ended_at[connection] = asyncio.get_running_loop().time()
            serving.reset(token)
            in_flight.end(key)

    def _answer(self, verdict: Verdict) -> web.Response | None:
        """Return the answer to what the application does not see."""
        if verdict is Verdict.SERVE:
            return None
        if verdict is Verdict.ANSWER_READINESS and not self._state.is_stopping:
            return web.Response(body=READY, content_type="text/plain")
        body = REFUSAL if verdict is Verdict.REFUSE else STOPPING
        headers = {"Retry-After": self._policy.retry_after}
        answer = web.Response(status=503, body=body, content_type="text/plain", headers=headers)
        answer.force_close()
        return answer

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        # An answer is about to be written.
        served = self.served.get(request.protocol)
        if served is not None:
            served.has_started = True
        # The type is asked first because these classes are abstract ones, whose isinstance is slow.
        if type(response) is not web.Response and isinstance(response, web.WebSocketResponse):
            if served is not None:
                served.websocket = response
        elif self._state.is_delisted and response.status >= 200 and not has_more(request.protocol):
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"  # the headers were made before this signal is sent


async def _finished(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    # Anything else is no answer, and aiohttp says so.
    if type(response) is web.Response or isinstance(response, web.StreamResponse):
        with suppress(ConnectionError):  # the client is gone; aiohttp finds out by itself
            await response.prepare(request)
            await response.write_eof()
    return response


def has_more(connection: Connection) -> bool:
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


def _peer(connection: Connection) -> str:
    transport = connection.transport
    peer = None if transport is None else transport.get_extra_info("peername")
    return _endpoint(peer[0], peer[1]) if type(peer) is tuple else str(peer or "")


_endpoint = lru_cache(maxsize=1024)(format_endpoint)
"""Most requests come on a connection that has carried others."""
