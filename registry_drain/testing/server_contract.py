"""The promises of :mod:`registry_drain.servers.base` as tests, which every adapter passes.

Use it for your own adapter by subclassing it in a test module::

    class TestMyServer(ServerContract):
        def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
            return MyServer(...)  # on 127.0.0.1, port 0; answers each request with serve(payload)

        def connect(self, address: tuple[str, int]) -> ContractClient:
            return MyClient(address)

Every test makes servers of its own and leaves nothing behind: a thread or a socket that outlives ``cut_off`` fails it.
Real sockets and real time, bounded by ``patience``. The suite needs only a runner that calls ``test_*`` methods, and
skips by :class:`unittest.SkipTest`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import unittest
from collections import Counter
from collections.abc import Callable, Iterator

from registry_drain.errors import ServerError
from registry_drain.servers.base import DrainableServer
from registry_drain.testing.bench import Call, promise, until
from registry_drain.testing.server_stage import LARGE, REPLY, ContractClient, Stage

__all__ = ["ContractClient", "ServerContract"]

_THOUGHT_IDLE = 0.4
"""Seconds without a byte after which a drain may think that a connection is idle: this package's, 0.2 at the most."""
_PROMPT = 0.1
"""Seconds from connecting to having sent, within which a client has to be served; a drain gives it more."""


class ServerContract:
    """Every promise. Override the first two, and what else your server needs.

    Attributes:
        patience: real seconds that anything may take.
        request_name: the name that a request carries in reports; None if the adapter cannot know one.
        is_concurrent: whether several connections are served at the same time.
        can_pipeline: whether a client may send its next request before it has the answer to the last one.
        keeps_connections: whether a connection carries more than one request.
        serves_in_processes: whether handlers run in forked child processes.
    """

    patience: float = 10.0
    request_name: str | None = None
    is_concurrent: bool = True
    can_pipeline: bool = True
    keeps_connections: bool = True
    serves_in_processes: bool = False

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return an adapter around a new server on 127.0.0.1 and a free port, which answers with ``serve(payload)``."""
        raise NotImplementedError

    def connect(self, address: tuple[str, int]) -> ContractClient:
        """Return a client that is connected to ``address``.

        Raises:
            ConnectionRefusedError: nobody listens.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def _stage(self) -> Iterator[Stage]:
        with self._unstarted_stage() as stage:
            yield stage.start()

    def _unstarted_stage(self) -> Stage:
        return Stage(
            self.new_server, self.connect, patience=self.patience, serves_in_processes=self.serves_in_processes
        )

    def _needs(self, ability: bool, what: str) -> None:  # noqa: FBT001 -- an attribute of this class
        if not ability:
            raise unittest.SkipTest(f"this server does not {what}")

    # ------------------------------------------------------------------------------------------------- serving

    def test_start_returns_the_address_and_requests_are_served(self) -> None:
        """Connections are accepted when start returns."""
        with self._stage() as stage:
            promise(stage.address[1] > 0, "start returns the bound port")
            stage.served_client()

    def test_start_again_is_refused(self) -> None:
        """A server starts once."""
        with self._stage() as stage:
            _raises(ServerError, stage.server.start, "a second start is refused")

    def test_requests_are_counted_and_named(self) -> None:
        """While it is served a request is in flight, under its name; afterwards it is not, and stays counted."""
        with self._stage() as stage:
            in_flight = stage.server.in_flight
            promise(in_flight.total == 0 and in_flight.last_arrival_at is None, "nothing has arrived yet")
            client = stage.waiting_client()
            (request,) = in_flight.snapshot()
            promise(in_flight.count == 1, "a request that is served is in flight")
            if self.request_name is not None:
                promise(request.name == self.request_name, f"it is named {self.request_name}, not {request.name}")
            promise(request.peer.startswith("127.0.0.1:"), f"its peer is the client, not {request.peer!r}")
            stage.gate.set()
            promise(client.receive() == REPLY, "it is answered")
            until(lambda: in_flight.count == 0, self.patience, "an answered request is not in flight")
            promise(in_flight.total == 1, "it has arrived once")
            arrived_at = in_flight.last_arrival_at or 0.0
            age = stage.deadline(0).at - arrived_at
            promise(0 <= age < self.patience, f"it arrived a moment ago, not {age:.1f} s")

    def test_a_handler_knows_that_it_is_one(self) -> None:
        """A stop that is called from a handler must not wait for that handler."""
        with self._stage() as stage:
            client = stage.client()
            client.send(b"inside")
            promise(client.receive() == b"True", "holds_current_thread is True inside a handler")
            promise(not stage.server.in_flight.holds_current_thread(), "and False elsewhere")

    # ------------------------------------------------------------------------------------------- the listener

    def test_a_closed_listener_refuses(self) -> None:
        """When close_listener returns a client is refused, at once."""
        with self._stage() as stage:
            promise(stage.close_listener().is_clean, "an idle listener closes cleanly")
            _raises(ConnectionRefusedError, stage.client, "a closed listener refuses connections")

    def test_close_listener_is_idempotent(self) -> None:
        """Called twice, and from two threads at once, it says the same."""
        with self._stage() as stage:
            calls = [Call(lambda: stage.server.close_listener(stage.deadline())) for _ in range(2)]
            first, second = (call.result(self.patience, "close_listener") for call in calls)
            promise(first == second == stage.close_listener(), "every call returns the first one's outcome")

    def test_what_waits_to_be_accepted_is_served(self) -> None:
        """Connections that wait, behind a busy server, are served although the listener is closed."""
        with self._stage() as stage:
            busy = stage.waiting_client()
            waiting = [stage.client() for _ in range(20)]
            for client in waiting:
                client.send(b"queued")
            stage.close_listener()
            stage.gate.set()
            draining = stage.draining()
            promise(busy.receive() == REPLY, "the busy one is answered")
            for client in waiting:
                promise(client.receive() == b"queued", "a connection from the backlog is answered")
            stage.drained(draining)

    def test_requests_between_closing_and_draining_are_served(self) -> None:
        """Closing the listener is no concern of the connections that are open."""
        self._needs(self.keeps_connections, "keep connections")
        with self._stage() as stage:
            client = stage.served_client()
            stage.close_listener()
            client.send(b"still here")
            promise(client.receive() == b"still here", "an open connection is served after the listener is closed")

    def test_no_client_is_reset_by_a_closing_listener(self) -> None:
        """Clients that connect all the time are either answered or refused."""
        ends: list[str] = []  # in which, unlike in a count, no two threads can lose one
        with self._stage() as stage:
            stopped, is_warm = threading.Event(), threading.Semaphore(0)

            def hammer() -> None:
                for turn in itertools.count():
                    outcome = outcome_of_one_call(self.connect, stage.address)
                    ends.append(outcome)
                    if turn == 3:
                        is_warm.release()
                    if outcome != "answered" or stopped.is_set():
                        return

            hammers = [Call(hammer) for _ in range(8)]
            for _ in hammers:
                promise(is_warm.acquire(timeout=self.patience), f"clients are served: {Counter(ends)}")
            closure = stage.close_listener()
            stage.drained(stage.draining())
            stopped.set()
            for each in hammers:
                each.result(self.patience, "a client")
        outcomes = Counter(ends)
        harmless = {"answered", "refused", "late"}
        failures = {outcome: count for outcome, count in outcomes.items() if outcome not in harmless}
        # Without privileges the last moment cannot be closed, see registry_drain.servers.listener. And with them, on a
        # machine so busy that a handshake takes longer than the listener waits for it, one may be late.
        tolerated = 4 if closure.method == "listen(0)" else 1
        promise(sum(failures.values()) <= tolerated, f"no connection is reset ({closure}): {dict(outcomes)}")
        promise(outcomes["refused"] > 0, f"in the end clients are refused: {dict(outcomes)}")

    # --------------------------------------------------------------------------------------------- the drain

    def test_idle_connections_are_closed_politely(self) -> None:
        """An idle client reads an end of file, not a reset."""
        self._needs(self.keeps_connections, "keep connections")
        with self._stage() as stage:
            clients = [stage.served_client()]
            if self.is_concurrent:
                clients += [stage.served_client() for _ in range(4)]
            stage.close_listener()
            draining = stage.draining()
            for client in clients:
                _raises(EOFError, client.receive, "an idle connection ends with an end of file")
            stage.drained(draining)

    def test_connections_that_were_never_used_are_closed_politely(self) -> None:
        """A client that connected ahead of need reads an end of file."""
        with self._stage() as stage:
            client = stage.client()
            stage.close_listener()
            draining = stage.draining()
            _raises(EOFError, client.receive, "an unused connection ends with an end of file")
            stage.drained(draining)

    def test_a_busy_connection_gets_its_answer_and_is_closed_behind_it(self) -> None:
        """The drain waits for the request; then the connection ends."""
        with self._stage() as stage:
            client = stage.waiting_client()
            stage.close_listener()
            draining = stage.draining()
            draining.join(0.05)
            promise(draining.is_alive(), "the drain waits for the request in flight")
            stage.gate.set()
            promise(client.receive() == REPLY, "a request in flight is answered")
            _raises(EOFError, client.receive, "the connection is closed behind the answer")
            stage.drained(draining)

    def test_a_pipelined_request_is_answered(self) -> None:
        """What was sent behind a request in flight, before the drain, is served too."""
        self._needs(self.can_pipeline, "pipeline")
        with self._stage() as stage:
            client = stage.waiting_client()
            client.send(b"second")
            client.send(b"third")
            stage.close_listener()
            draining = stage.draining()
            stage.gate.set()
            answers = [client.receive() for _ in range(3)]
            promise(answers == [REPLY, b"second", b"third"], f"pipelined requests are answered in order: {answers}")
            _raises(EOFError, client.receive, "the connection is closed behind the last answer")
            stage.drained(draining)

    def test_a_large_answer_is_finished(self) -> None:
        """An answer that the client is slow to read is written to its end."""
        with self._stage() as stage:
            client = stage.client()
            client.send(b"large")
            promise(stage.entered.acquire(timeout=self.patience), "a request reaches its handler")
            stage.close_listener()
            draining = stage.draining()
            draining.join(_THOUGHT_IDLE)
            promise(draining.is_alive(), "the drain waits for an answer that is being written")
            promise(client.receive() == b"x" * LARGE, "an answer that is being written is finished")
            _raises(EOFError, client.receive, "the connection is closed behind it")
            stage.drained(draining)

    def test_a_stuck_handler_is_cut_off_and_named(self) -> None:
        """At the deadline the drain gives up, the rest is cut off, and the report knows what it was."""
        with self._stage() as stage:
            client = stage.waiting_client()
            stage.close_listener()
            draining = Call(lambda: stage.server.drain(stage.deadline(0.1)))
            promise(not draining.result(self.patience, "drain"), "drain returns False at its deadline")
            promise(stage.server.in_flight.count == 1, "and leaves the request alone")
            cut = stage.cut_off()
            promise(len(cut) == 1, f"what is cut off is told: {cut}")
            if self.request_name is not None:
                promise(cut[0].name == self.request_name, f"it is named {self.request_name}, not {cut[0].name}")
            _raises((EOFError, OSError), client.receive, "the client of a request that was cut off does not hang")

    def test_a_drain_without_time_returns_at_once(self) -> None:
        """A stop in a hurry still asks: nothing of it may wait."""
        with self._stage() as stage:
            client = stage.waiting_client()
            began_at = time.monotonic()
            stage.server.close_listener(stage.deadline(0))
            promise(not stage.server.drain(stage.deadline(0)), "a drain that has no time does not finish")
            elapsed = time.monotonic() - began_at
            promise(elapsed < self.patience / 2, f"without time nothing waits ({elapsed:.2f} s)")
            client.close()

    # ------------------------------------------------------------------------------------------- the life cycle

    def test_stop_before_start(self) -> None:
        """A server that was never started can be stopped, and cannot be started then."""
        with self._unstarted_stage() as stage:
            promise(stage.close_listener().is_clean, "there is nothing to close")
            promise(stage.server.drain(stage.deadline()), "there is nothing to drain")
            promise(stage.cut_off() == (), "there is nothing to cut off")
            _raises(ServerError, stage.server.start, "a stopped server does not start")

    def test_stop_twice(self) -> None:
        """Every step may be repeated."""
        with self._stage() as stage:
            stage.served_client()
            for _ in range(2):
                stage.close_listener()
                stage.drained(stage.draining())
            _raises(ServerError, stage.server.start, "a stopped server does not start")

    def test_cut_off_alone_ends_everything(self) -> None:
        """Even without the steps before it."""
        with self._stage() as stage:
            client = stage.served_client() if self.keeps_connections else stage.client()
            stage.cut_off()
            _raises((EOFError, OSError), client.receive, "cut_off ends connections")
            _raises(ConnectionRefusedError, stage.client, "cut_off closes the listener")


def outcome_of_one_call(connect: Callable[[tuple[str, int]], ContractClient], address: tuple[str, int]) -> str:
    """Connect, make a call and hang up; return "answered", "refused", "late", or what went wrong."""
    began_at = time.monotonic()
    try:
        client = connect(address)
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        # Of TLS, connecting may be a handshake: the client's first words.
        return _late_or(f"connecting: {error!r}", error, time.monotonic() - began_at)
    try:
        try:
            client.send(b"short")
        finally:
            sent_at = time.monotonic()
        return "answered" if client.receive() == b"short" else "garbled"
    except (OSError, EOFError) as error:
        # If a thread of the client's sends, that one knows when it had sent.
        sent_at = getattr(client, "sent_at", sent_at)
        return _late_or(f"calling: {error!r}", error, sent_at - began_at)
    finally:
        client.close()


def _late_or(failure: str, error: Exception, took: float) -> str:
    # One that this machine kept from sending looks as if it never wanted to, and was closed as idle. Nobody hangs.
    return "late" if took > _PROMPT and not isinstance(error, TimeoutError) else failure


def _raises(errors: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object], promised: str) -> None:
    __tracebackhide__ = True
    try:
        value = call()
    except TimeoutError as error:
        # An OSError too: the client's own, whose server has let it hang.
        raise AssertionError(f"{promised}; it hangs instead: {error!r}") from error
    except errors:
        return
    except Exception as error:
        raise AssertionError(f"{promised}; raised instead: {error!r}") from error
    promise(is_kept=False, broken=f"{promised}; returned instead: {str(value)[:80]}")
