"""What the adapters of sync and aio servers have in common: the order of a gRPC server's stop.

Theory of operation: the user makes the server, as ever, with our interceptor first in its list, and adds its ports.
The stop then goes as gRPC wants it, and not as ``server.stop()`` alone does it:

1. From the stop's beginning health checks say NOT_SERVING, and everything is served: clients that check leave.
2. The listener is closed when the core has accepted what the kernel had, by way of duplicates of the core's sockets
   (:mod:`~registry_drain.servers.grpc_server.ports`). Open connections are served on.
3. Clients leave (:mod:`~registry_drain.servers.grpc_server.departure`): by themselves, or told by their connection's
   age. Health watches end.
4. ``server.stop()`` sends a GOAWAY to who is left; what Python has taken is finished, streams included.
5. Cutting off is ``server.stop(0)``, which cancels.

Rules:

1. ``stop`` is never called with None: it would wait without a limit, holding up whoever cuts off.
2. Its grace is a day, not the drain's: a drain that runs out of time leaves the rest untouched.
"""

from __future__ import annotations

import abc
import threading
import time

from registry_drain.clock import Deadline
from registry_drain.phases import Phase
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.grpc_server.connection_age import Options
from registry_drain.servers.grpc_server.counting import Calls
from registry_drain.servers.grpc_server.departure import Departure
from registry_drain.servers.grpc_server.ports import Ports
from registry_drain.servers.in_flight import InFlight, InFlightRequest

GRACE_S = 86_400.0

CUT_LIMIT_S = 1.0
"""Seconds that cutting off waits for the core to let go of what was cancelled."""

ANSWER_PATIENCE = 2.0
"""Seconds for clients to answer the GOAWAY's PING once all calls are over; the core would wait for 20. A client that
takes longer is gone, or frozen.
"""

_LOOK_EVERY = 0.005


class GrpcAdapter(abc.ABC):
    """A gRPC server's stop; the rest of a :class:`~registry_drain.servers.base.DrainableServer` is the subclass'."""

    def __init__(self, calls: Calls, options: Options, idle_quiet: float) -> None:
        self._calls = calls
        self._options = list(options)
        self._idle_quiet = idle_quiet
        self._ports: Ports | None = None
        self._lock = threading.Lock()
        self._closing_lock = threading.Lock()
        self._is_started = False
        self._is_stopped = False
        self._is_ending = False
        self._ended = threading.Event()
        self._closure: ListenerClosure | None = None
        self.in_flight.stop_state.watch(self._at_phase)

    @property
    def in_flight(self) -> InFlight:
        """The server's requests, named by full method; health checks are not among them."""
        return self._calls.in_flight

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return 0 if self._ports is None else self._ports.connections()

    @abc.abstractmethod
    def has_calls(self) -> bool:
        """Whether gRPC has calls to finish: those that still arrive, and answers that still leave, are among them."""

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting; what is in the backlog is served. See :meth:`DrainableServer.close_listener`."""
        # Held during the whole close: it guards only that two of them do not interleave.
        with self._closing_lock:
            if self._closure is None:
                with self._lock:
                    self._is_stopped = True
                self._closure = ListenerClosure("never started") if self._ports is None else self._ports.close(deadline)
                if not self._is_started:
                    self._forget()
            return self._closure

    def drain(self, deadline: Deadline) -> bool:
        """Let clients leave and calls finish. See :meth:`DrainableServer.drain`."""
        self.in_flight.stop_state.enter(Phase.DRAINING, deadline.at)
        if not self._is_started or self._ports is None:
            return True
        self._calls.end_watches()
        timer = self._start_stream_timer()
        try:
            if not self._is_ending:
                Departure(self._ports, self._calls, self._options, self._idle_quiet).wait(deadline)
                self._is_ending = True
            self._begin_end()
            return self._wait_for_end(deadline)
        finally:
            if timer is not None:
                timer.cancel()

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cancel what is left. Handlers that go on keep their threads. See :meth:`DrainableServer.cut_off`."""
        self.close_listener(Deadline.after(0.0))
        cut = self.in_flight.snapshot()
        if self._is_started and self._ports is not None:
            self._calls.end_watches()
            self._cancel()
            # The core closes sockets a moment after it has said that it has ended.
            until = time.monotonic() + CUT_LIMIT_S
            while self._ports.connections() and time.monotonic() < until:
                time.sleep(_LOOK_EVERY)
        return cut

    def _wait_for_end(self, deadline: Deadline) -> bool:
        # gRPC forgets a call that its client has cancelled; its handler may still be at work. So nothing is over before
        # nothing is in flight, and all is when in addition the server has ended.
        if not self.in_flight.wait_until_idle(deadline):
            return False
        patient_until = time.monotonic() + ANSWER_PATIENCE
        is_cancelled = False
        while not self._ended.is_set():
            if deadline.is_past:
                return False
            if self.has_calls() or self.in_flight.count:
                patient_until = time.monotonic() + ANSWER_PATIENCE
            elif not is_cancelled and time.monotonic() >= patient_until:
                is_cancelled = True
                self._cancel()
            deadline.clock.wait(self._ended, min(_LOOK_EVERY, deadline.remaining()))
        return True

    @abc.abstractmethod
    def _begin_end(self) -> None:
        """Call ``stop(GRACE_S)`` and have ``_ended`` set when it is over. Idempotent; must not block."""

    @abc.abstractmethod
    def _cancel(self) -> None:
        """Cancel all calls, and wait for the end for a moment."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Let go of a server that was never started."""

    @abc.abstractmethod
    def _say_not_serving(self) -> None:
        """Tell those that ask, and those that watch, that the server is about to stop. Must not block."""

    def _at_phase(self, _phase: Phase) -> None:
        self._say_not_serving()

    def _start_stream_timer(self) -> threading.Timer | None:
        seconds = self._calls.plan_stream_ends()
        if seconds is None:
            return None
        timer = threading.Timer(seconds, self._calls.end_streams)
        timer.name, timer.daemon = "registry-drain-grpc-streams", True
        timer.start()
        return timer

    def __repr__(self) -> str:
        """Show the ports and the counts."""
        return f"<{type(self).__name__} {self._ports!r} in_flight={self.in_flight.count}>"
