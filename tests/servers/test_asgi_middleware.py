"""The ASGI middleware by itself, called as a server calls it; the adapters' tests have real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.phases import Phase
from registry_drain.servers.current_request import is_draining, name_request, time_left
from registry_drain.servers.http import ASGIMiddleware, asgi
from registry_drain.servers.http.asgi_types import Message, Receive, Scope, Send
from registry_drain.servers.http.served_request import InsideRequest
from registry_drain.servers.in_flight import InFlight
from registry_drain.testing.clock import FakeClock

PATIENCE = 20.0


class Connection:
    """A server's side of one request or WebSocket, and its client's."""

    def __init__(self, app: ASGIMiddleware, path: str = "/", kind: str = "http", **scope: Any) -> None:
        """Call the application in a task."""
        self.sent: list[Message] = []
        self.changed = asyncio.Event()
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.scope: Scope = {
            "type": kind,
            "path": path,
            "query_string": b"secret=1",
            "http_version": "1.1",
            "client": ("10.0.0.9", 5000),
            "headers": [],
            **({"method": "GET"} if kind == "http" else {}),
            **scope,
        }
        self.inbox.put_nowait({"type": "http.request"} if kind == "http" else {"type": "websocket.connect"})
        self.task = asyncio.ensure_future(app(self.scope, self.inbox.get, self.send))

    async def send(self, message: Message) -> None:
        """Take what the application sends."""
        if message["type"] != "websocket.close":
            await self.may_send.wait()
        self.sent.append(message)
        if message["type"] == "websocket.close":
            self.inbox.put_nowait({"type": "websocket.disconnect", "code": message["code"]})
        self.changed.set()

    async def next(self, count: int = 1) -> Message:
        """Return the ``count``-th message that was sent, once it is there."""
        while len(self.sent) < count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), PATIENCE)
        return self.sent[count - 1]

    async def end(self) -> None:
        """Wait until the application returns."""
        await asyncio.wait_for(self.task, PATIENCE)

    def connection(self) -> list[bytes]:
        """Return the ``Connection`` headers of the answer."""
        return [value for name, value in self.sent[0]["headers"] if name.lower() == b"connection"]

    def status(self) -> int:
        """Return the answer's status."""
        status: int = self.sent[0]["status"]
        return status


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop."""

    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def respond(send: Send, *headers: tuple[bytes, bytes]) -> None:
    """Answer."""
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b"hello"})


async def hello(_: Scope, receive: Receive, send: Send) -> None:
    """Answer at once."""
    await receive()
    await respond(send)


def stop(in_flight: InFlight, phase: Phase, seconds: float = PATIENCE) -> None:
    """Do what the stop routine does."""
    in_flight.stop_state.enter(phase, Deadline.after(seconds).at)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition`` holds."""
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def names(middleware: ASGIMiddleware) -> list[str]:
    """Return what is in flight."""
    return [str(request) for request in middleware.in_flight.snapshot()]


@in_loop
async def test_a_request_is_in_flight_until_the_application_returns() -> None:
    """What it does behind its answer is part of it; named without its query, which may hold a secret."""
    gate = asyncio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await hello(_, receive, send)
        await gate.wait()

    middleware = ASGIMiddleware(app)
    connection = Connection(middleware, "/path")
    await connection.next(2)
    assert names(middleware) == ["GET /path from 10.0.0.9:5000"]
    gate.set()
    await connection.end()
    assert (middleware.in_flight.count, middleware.in_flight.total) == (0, 1)


@in_loop
async def test_an_application_that_another_one_calls_gives_its_request_back() -> None:
    """In the context of the caller's handler, whose own request is the current one before and afterwards."""
    named: list[list[str]] = []
    inner = ASGIMiddleware(hello)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "path": "/inner"}, receive, send)
        name_request("outer")
        named.append(names(outer))

    outer = ASGIMiddleware(app)
    await Connection(outer).end()
    assert named == [["outer from 10.0.0.9:5000"]]


@in_loop
async def test_an_application_that_fails_is_not_in_flight() -> None:
    """The error is the server's to handle."""

    async def app(_: Scope, __: Receive, ___: Send) -> None:
        raise RuntimeError("no good")

    middleware = ASGIMiddleware(app)
    with pytest.raises(RuntimeError, match="no good"):
        await Connection(middleware).end()
    assert middleware.in_flight.count == 0


@in_loop
async def test_lifespan_passes_through() -> None:
    """It is no request."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        seen.extend([scope["type"], (await receive())["type"]])

    middleware = ASGIMiddleware(app)
    await Connection(middleware, kind="lifespan").end()
    assert seen == ["lifespan", "websocket.connect"]
    assert middleware.in_flight.total == 0


@in_loop
async def test_connection_close_is_said_once_delisted() -> None:
    """To HTTP/1 clients, in place of what the application says, but not an upgrade; as late as can be."""
    gate = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/slow":
            await gate.wait()
        header = {"/keep": b"keep-alive", "/upgrade": b"Upgrade"}.get(scope["path"])
        await respond(send, *([(b"Connection", header)] if header else []))

    middleware = ASGIMiddleware(app)

    async def asked(path: str, **scope: Any) -> list[bytes]:
        connection = Connection(middleware, path, **scope)
        await connection.end()
        return connection.connection()

    slow = Connection(middleware, "/slow")
    assert await asked("/") == []
    stop(middleware.in_flight, Phase.DEREGISTERING)
    assert await asked("/") == []
    stop(middleware.in_flight, Phase.PROPAGATING)
    assert await asked("/") == [b"close"]
    assert await asked("/keep") == [b"close"]
    assert await asked("/upgrade") == [b"Upgrade"]
    assert await asked("/", http_version="1.0") == [b"close"]
    assert await asked("/", http_version="2") == []
    gate.set()
    await slow.end()
    assert slow.connection() == [b"close"]


@in_loop
async def test_where_the_server_is_known_from_inside_the_first_late_request_is_sent_away_too() -> None:
    """Those in flight by the server's own objects; what comes behind the delisting as anywhere, in that very turn."""
    away: list[str] = []

    class Inside(InsideRequest):
        has_started = False

        @staticmethod
        def knows(_receive: Receive, _send: Send) -> bool:
            return True

        def send_away(self) -> None:
            away.append(self.name)

    gate = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/slow":
            await gate.wait()
        await respond(send)

    middleware = ASGIMiddleware(app, inside=Inside)
    slow = Connection(middleware, "/slow")
    await asyncio.sleep(0)
    stop(middleware.in_flight, Phase.PROPAGATING)
    late = Connection(middleware)
    late.task.cancel()  # instead of in a task: here, in this very turn
    await middleware(late.scope, late.inbox.get, late.send)
    assert late.connection() == [b"close"]
    assert away == ["GET /slow"]
    gate.set()
    await slow.end()
    assert slow.connection() == [], "the server's own send"


@in_loop
async def test_late_requests_are_served_while_there_is_time() -> None:
    """Then 503 with Retry-After, without asking the application; health checks too, and WebSockets."""
    middleware = ASGIMiddleware(hello, retry_after=7, health_check_paths=["/health"])
    stop(middleware.in_flight, Phase.DRAINING)
    served = Connection(middleware)
    await served.end()
    assert served.status() == 200
    middleware.in_flight.stop_state.hurry(Deadline.after(0).at)
    for path in ("/", "/health"):
        refused = Connection(middleware, path)
        await refused.end()
        assert refused.status() == 503
        assert (b"retry-after", b"7") in refused.sent[0]["headers"]
        assert refused.connection() == [b"close"]
    assert middleware.in_flight.total == 1


@in_loop
async def test_refusing_as_soon_as_the_listener_is_sealed() -> None:
    """As a filter in front does it; health checks pass. The refused request's body is read first."""
    middleware = ASGIMiddleware(hello, health_check_paths=["/health"], refuses_when_sealed=True)
    stop(middleware.in_flight, Phase.DRAINING)
    refused = Connection(middleware)
    await refused.end()
    assert refused.status() == 503
    assert refused.inbox.empty()
    checked = Connection(middleware, "/health")
    await checked.end()
    assert checked.status() == 200


@in_loop
async def test_readiness() -> None:
    """200 while serving, 503 from the first moment of the stop, and no request."""
    middleware = ASGIMiddleware(hello, readiness_path="/ready")
    before, head = Connection(middleware, "/ready"), Connection(middleware, "/ready", method="HEAD")
    await before.end()
    await head.end()
    assert (before.status(), before.sent[1]["body"], head.sent[1]["body"]) == (200, b"ready\n", b"")
    stop(middleware.in_flight, Phase.DEREGISTERING)
    after = Connection(middleware, "/ready")
    await after.end()
    assert (after.status(), after.sent[1]["body"]) == (503, b"stopping\n")
    assert middleware.in_flight.total == 0


@in_loop
async def test_who_waits_for_its_client_is_told_shortly_before_the_end() -> None:
    """Server-sent events, long polls: they may finish their answer; from then on every such wait ends at once."""
    told: list[object] = []
    instants: list[float] = []
    clock = FakeClock(autojump=False)

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        told.append(await receive())
        told.append(await receive())
        told.append((time_left() or 0.0) > 0)
        await respond(send)

    async def sleep_until(instant: float) -> None:
        # A busy machine may sleep past the end: what counts is when the middleware means to wake up.
        assert not told
        instants.append(instant)

    middleware = ASGIMiddleware(app, in_flight=InFlight(clock=clock))
    waiting = Connection(middleware)
    await asyncio.sleep(0)
    began_at = asyncio.get_running_loop().time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asgi, "_sleep_until", sleep_until)
        middleware.in_flight.stop_state.enter(Phase.DRAINING, clock.now() + PATIENCE)
        await waiting.end()
    half, notice = instants
    assert half >= began_at + PATIENCE / 2
    assert notice - half == pytest.approx(PATIENCE / 2 - min(asgi._NOTICE_S, PATIENCE / 10))
    assert told == [{"type": "http.disconnect"}, {"type": "http.disconnect"}, True]
    assert waiting.status() == 200


@in_loop
async def test_who_still_sends_its_body_is_not_told() -> None:
    """Its next piece is the server's to deliver, however late; behind the last one the application is told."""
    got: list[Message] = []

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        got.extend([await receive() for _ in range(3)])

    middleware = ASGIMiddleware(app)
    connection = Connection(middleware, method="POST")
    connection.inbox.get_nowait()
    pieces: list[Message] = [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
    ]
    connection.inbox.put_nowait(pieces[0])
    await asyncio.sleep(0)
    stop(middleware.in_flight, Phase.DRAINING, seconds=0.0)
    await asyncio.sleep(0.05)
    assert got == []
    connection.inbox.put_nowait(pieces[1])
    await connection.end()
    assert got == [*pieces, {"type": "http.disconnect"}]


@in_loop
async def test_a_client_that_leaves_is_told_as_ever() -> None:
    """And a body in several pieces arrives in all of them."""
    got: list[Message] = []

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        got.extend([await receive() for _ in range(3)])

    middleware = ASGIMiddleware(app)
    connection = Connection(middleware)
    connection.inbox.get_nowait()
    sent: list[Message] = [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
        {"type": "http.disconnect"},
    ]
    for message in sent:
        connection.inbox.put_nowait(message)
    await connection.end()
    assert got == sent


@in_loop
async def test_what_is_cut_off_is_cancelled_awaited_and_answered() -> None:
    """503 without Retry-After if its answer has not begun: nobody is invited to repeat what may be half done."""
    tidied: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.01)
            tidied.append(scope["path"])

    middleware = ASGIMiddleware(app)
    begun, fresh = Connection(middleware, "/begun"), Connection(middleware, "/fresh")
    await begun.next()
    cut = await middleware.cut_off()
    assert [request.name for request in cut] == ["GET /begun", "GET /fresh"]
    assert sorted(tidied) == ["/begun", "/fresh"]
    await begun.end()
    await fresh.end()
    assert len(begun.sent) == 1
    assert fresh.status() == 503
    assert b"retry-after" not in dict(fresh.sent[0]["headers"])
    assert middleware.in_flight.count == 0


@in_loop
async def test_a_cancellation_by_somebody_else_is_left_alone() -> None:
    """The server cancels a request whose client has left: nothing is answered."""

    async def app(_: Scope, __: Receive, ___: Send) -> None:
        await asyncio.sleep(PATIENCE)

    middleware = ASGIMiddleware(app)
    connection = Connection(middleware)
    await asyncio.sleep(0)
    connection.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connection.end()
    assert connection.sent == []
    assert middleware.in_flight.count == 0


@in_loop
async def test_a_request_that_ignores_its_cancellation_is_not_waited_for() -> None:
    """Cutting off takes no longer than it may."""
    gate = asyncio.Event()

    async def app(_: Scope, __: Receive, ___: Send) -> None:
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    middleware = ASGIMiddleware(app)
    connection = Connection(middleware)
    await asyncio.sleep(0)
    (request,) = await asyncio.wait_for(middleware.cut_off(0.01), PATIENCE)
    assert request.name == "GET /"
    assert not connection.task.done()
    gate.set()
    await connection.end()


# -------------------------------------------------------------------------------------------------------- WebSockets


def echo(gate: asyncio.Event, seen: list[object]) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return an application that sends each message back; one that is ``busy`` waits for the gate first."""

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            if message["text"] == "busy":
                await gate.wait()
            await send({"type": "websocket.send", "text": message["text"]})
        seen.append((message["type"], is_draining()))

    return app


@in_loop
async def test_websockets_are_closed_with_1001_once_they_have_answered() -> None:
    """One that waits for a message at once, a busy one behind its answer; the application is told."""
    gate, seen = asyncio.Event(), []  # type: ignore[var-annotated]
    middleware = ASGIMiddleware(echo(gate, seen))
    idle, busy = Connection(middleware, "/idle", "websocket"), Connection(middleware, "/busy", "websocket")
    assert (await idle.next())["type"] == (await busy.next())["type"] == "websocket.accept"
    assert names(middleware) == ["WEBSOCKET /idle from 10.0.0.9:5000", "WEBSOCKET /busy from 10.0.0.9:5000"]
    busy.inbox.put_nowait({"type": "websocket.receive", "text": "busy"})
    await asyncio.sleep(0)
    stop(middleware.in_flight, Phase.PROPAGATING)
    await asyncio.sleep(0.01)
    assert len(idle.sent) == 1
    stop(middleware.in_flight, Phase.DRAINING)
    assert (await idle.next(2))["code"] == 1001
    await idle.end()
    assert len(busy.sent) == 1
    gate.set()
    assert await busy.next(2) == {"type": "websocket.send", "text": "busy"}
    assert (await busy.next(3))["code"] == 1001
    await busy.end()
    assert seen == [("websocket.disconnect", True)] * 2
    assert middleware.in_flight.count == 0


@in_loop
async def test_a_websocket_that_never_asks_is_closed_behind_a_message() -> None:
    """At half of the time, never inside of a message; what it sends after that raises OSError."""
    ended: list[str] = []

    async def push(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0)
        except OSError as error:
            ended.append(str(error))

    middleware = ASGIMiddleware(push)
    connection = Connection(middleware, kind="websocket")
    await connection.next(2)
    connection.may_send.clear()  # a message is being sent
    stop(middleware.in_flight, Phase.DRAINING, seconds=0.2)
    (websocket,) = middleware._websockets.values()
    await until(lambda: websocket._is_forced)
    before = len(connection.sent)
    connection.may_send.set()
    await connection.end()
    assert [message["type"] for message in connection.sent[before:]] == ["websocket.send", "websocket.close"]
    assert connection.sent[-1]["code"] == 1001
    assert ended == ["the WebSocket was closed: this instance is stopping"]


@in_loop
async def test_an_application_that_closes_by_itself_is_not_closed_again() -> None:
    """Its own code stands; a close that comes second is dropped."""
    gate = asyncio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await gate.wait()
        await send({"type": "websocket.close", "code": 4000})

    middleware = ASGIMiddleware(app)
    connection = Connection(middleware, kind="websocket")
    await connection.next()
    stop(middleware.in_flight, Phase.DRAINING)
    assert (await connection.next(2))["code"] == 1001
    gate.set()
    await connection.end()
    assert len(connection.sent) == 2


@in_loop
async def test_handshakes_are_refused_when_draining() -> None:
    """With 503 where the server can say so, else by a close before the accept, which is a 403."""
    middleware = ASGIMiddleware(hello)
    stop(middleware.in_flight, Phase.DRAINING)
    plain = Connection(middleware, kind="websocket")
    await plain.end()
    assert plain.sent == [{"type": "websocket.close", "code": 1001}]
    able = Connection(middleware, kind="websocket", extensions={"websocket.http.response": {}})
    await able.end()
    assert able.sent[0]["status"] == 503
    assert middleware.in_flight.total == 0


@in_loop
async def test_many_websockets_are_closed_over_time() -> None:
    """Their clients all come back to somebody: some at a time, and yet all of them inside of half of the time."""
    gate, seen, clock = asyncio.Event(), [], FakeClock(autojump=False)  # type: ignore[var-annotated]
    # On this clock all of the time is left, however late the loop looks.
    middleware = ASGIMiddleware(echo(gate, seen), in_flight=InFlight(clock=clock))
    connections = [Connection(middleware, kind="websocket") for _ in range(100)]
    for each in connections:
        await each.next()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("registry_drain.servers.http.asgi._CLOSE_EVERY_S", PATIENCE / 4)
        middleware.in_flight.stop_state.enter(Phase.DRAINING, clock.now() + PATIENCE)
        await until(lambda: any(len(each.sent) == 2 for each in connections))
        for _ in range(20):
            await asyncio.sleep(0)
        assert sum(len(each.sent) == 2 for each in connections) == 51  # two such steps make half of the time
    middleware.in_flight.stop_state.hurry(clock.now() + 1)
    for each in connections:
        assert (await each.next(2))["code"] == 1001
        await each.end()


@in_loop
async def test_a_second_signal_hurries_websockets() -> None:
    """There is no time to wait for an answer any more."""
    gate, seen = asyncio.Event(), []  # type: ignore[var-annotated]
    middleware = ASGIMiddleware(echo(gate, seen))
    busy = Connection(middleware, kind="websocket")
    await busy.next()
    busy.inbox.put_nowait({"type": "websocket.receive", "text": "busy"})
    stop(middleware.in_flight, Phase.DRAINING)
    await asyncio.sleep(0.01)
    assert len(busy.sent) == 1
    middleware.in_flight.stop_state.hurry(Deadline.after(0).at)
    assert (await busy.next(2))["code"] == 1001
    gate.set()
    with pytest.raises(ConnectionAbortedError):
        await busy.end()
