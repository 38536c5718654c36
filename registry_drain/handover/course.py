"""The course of a hand-over in the old process: one thread, from the signal to the stop, or back to serving.

See :mod:`registry_drain.handover` for the order. Rules:

1. What fails before ``yours`` is said ends in :meth:`HandoverCourse._fail`: take back, end the new process, take back
   again (it may have written once more before it was gone). A stop that begins meanwhile ends the new process first,
   and only then may the registrations be removed: they wait for :meth:`PersistentRegistration.settle`.
2. What was started is ended or has become the service: nothing else leaves this file.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.handover import supervisor
from registry_drain.handover.channel import Channel, ChannelClosedError, Message
from registry_drain.handover.settings import Handover
from registry_drain.handover.successor import Successor
from registry_drain.persistent_registration import PersistentRegistration
from registry_drain.servers.listener.activation import SUPERVISOR, process_sockets
from registry_drain.shutdown.events import HandoverFailed, HandoverStarted, logger
from registry_drain.shutdown.routine import StopRoutine

HANDED_OVER = "handed over"
_LOOK_S = 0.05
_TAKE_BACK_LIMIT = 5.0
"""Seconds for putting the registrations back; after that their own threads go on trying."""
_LEAVE_LIMIT = 1.5
"""Seconds that a new process has for leaving the registries when the old one is stopped; then it is killed."""


class _FailedError(Exception):
    """The hand-over has failed; the message says why."""


class _StoppedError(Exception):
    """The old process is being stopped."""


class HandoverCourse:
    """Hands one service over, or fails to, any number of times until it succeeds. Thread-safe.

    Args:
        settings: how the next process is started.
        routine: this service's stop.
        registrations: this service's, all of them.
        port: this service's bound port; None while it does not listen.
        clock: measures and passes all time.
        is_successor: whether this process is being handed over to itself: then it will be allowed to hand on.
    """

    def __init__(
        self,
        settings: Handover,
        routine: StopRoutine,
        registrations: Callable[[], Iterable[PersistentRegistration]],
        port: Callable[[], int | None],
        clock: Clock,
        *,
        is_successor: bool = False,
    ) -> None:
        self._settings = settings
        self._routine = routine
        self._registrations = registrations
        self._port = port
        self._clock = clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._successor: Successor | None = None
        self._is_successor = is_successor
        self._is_allowed = False
        self._postponed = ""  # the reason of a request that waits until we are allowed

    def allow(self) -> None:
        """Note that this process itself is ready: nothing is handed on before. Begin what was postponed until now."""
        with self._lock:
            self._is_allowed = True
            postponed, self._postponed = self._postponed, ""
        if postponed:
            self.request(postponed)

    def request(self, reason: str, *, may_postpone: bool = False) -> threading.Thread | None:
        """Begin, and return the thread that does it; None, and a log line, if one is under way or it is too late.

        ``may_postpone``: if the hand-over to this process is all that is missing, begin when that is done, and return
        None. The supervisor may know of it before we do, and send SIGHUP at once.
        """
        with self._lock:
            if may_postpone and self._is_successor and not self._is_allowed and not self._routine.is_stopping:
                self._postponed = reason
                logger.info("hand-over requested (%s): begins when this process has been handed over to", reason)
                return None
            refused = (
                "the stop has begun"
                if self._routine.is_stopping
                else "this process is not ready itself"
                if not self._is_allowed
                else f"one is under way, to pid {self._successor.pid if self._successor else '?'}"
                if self._thread is not None
                else ""
            )
            if refused:
                logger.warning("hand-over requested (%s): ignored, %s", reason, refused)
                return None
            thread = self._thread = threading.Thread(
                target=self._run, args=(reason,), name="registry-drain-handover", daemon=True
            )
        thread.start()
        return thread

    def finish(self, deadline: Deadline) -> None:
        """End what a hand-over that did not succeed has left running. At the end of this process' own stop."""
        with self._lock:
            postponed, self._postponed = self._postponed, ""
        if postponed:
            logger.warning("hand-over requested (%s): ignored, this process was never handed over to", postponed)
        thread, successor = self._thread, self._successor
        if thread is None or self._routine.handed_over_to is not None:
            return
        thread.join(deadline.remaining())
        if thread.is_alive() and successor is not None:
            successor.signal(signal.SIGKILL)
            thread.join(_LEAVE_LIMIT)

    # --- the course ---------------------------------------------------------------------------------------------------

    def _run(self, reason: str) -> None:
        supervisor.reloading()
        try:
            self._hand_over(reason)
        except (_FailedError, _StoppedError) as error:
            self._tell_failure(0, str(error))
        except Exception:  # noqa: BLE001 - nobody would see a thread die, and the service goes on
            logger.exception("a hand-over failed in an unforeseen way; this process serves on")
            supervisor.ready("serving; a hand-over failed")
        finally:
            with self._lock:
                self._thread = None

    def _hand_over(self, reason: str) -> None:
        sockets = process_sockets().in_use
        port = self._port()
        if port is not None and not any(_port_of(sock.getsockname()) == port for sock in sockets):
            raise _FailedError(
                f"port {port} was not opened by listening_socket(), so it cannot be handed over: give the server such a"
                " socket; one that opens its port itself (gRPC, granian) can only be stopped and started again"
            )
        missing = [str(each.instance) for each in self._registrations() if not each.is_registered]
        if missing:
            raise _FailedError(f"not registered itself: {', '.join(missing)}")
        channel, theirs = Channel.pair()
        try:
            with theirs:
                successor = Successor(self._settings, sockets, theirs)
        except OSError as error:
            channel.close()
            raise _FailedError(f"the new process cannot be started: {error}") from error
        self._successor = successor
        self._routine.tell(HandoverStarted(successor.pid, reason, tuple(self._settings.argv)))
        try:
            self._follow(successor, channel)
        finally:
            channel.close()

    def _follow(self, successor: Successor, channel: Channel) -> None:
        deadline = Deadline.after(self._settings.ready_within, self._clock)
        offered: list[PersistentRegistration] = []
        try:
            self._expect("listening", successor, channel, deadline)
            channel.send({"offers": dict(self._offer(offered, deadline))})
            adopted = self._expect("ready", successor, channel, deadline)["ready"]
            self._commit(successor, channel, offered, set(adopted))
        except _StoppedError:
            self._end_for_stop(successor, channel, offered)
        except _FailedError as error:
            self._fail(successor, channel, offered, str(error))
        except Exception as error:  # noqa: BLE001 - a registry's, say; two processes that both serve would be worse
            logger.exception("a hand-over failed in an unforeseen way")
            self._fail(successor, channel, offered, f"{type(error).__name__}: {error}")
        finally:
            if self._routine.handed_over_to is None:
                for registration in offered:
                    registration.settle(is_handed_over=False)

    def _offer(self, offered: list[PersistentRegistration], deadline: Deadline) -> Iterator[tuple[str, str]]:
        for registration in self._registrations():
            offered.append(registration)
            try:
                offer = registration.offer(deadline.capped(_TAKE_BACK_LIMIT))
            except RegistryDrainError as error:
                raise _FailedError(f"{registration.instance} cannot be offered: {error}") from error
            if offer:
                yield registration.key, offer

    def _expect(self, what: str, successor: Successor, channel: Channel, deadline: Deadline) -> Message:
        while True:
            if self._routine.is_stopping:
                raise _StoppedError("this process is being stopped")
            try:
                message = channel.receive(Deadline.after(_LOOK_S, self._clock))
            except ChannelClosedError:
                successor.wait(Deadline.after(_LEAVE_LIMIT, self._clock))
                how = successor.how_it_ended or "closed its channel"
                raise _FailedError(f"it {how} before it was ready") from None
            if message is not None and what in message:
                return message
            if message is not None and "failed" in message:
                raise _FailedError("it stopped before it was ready")
            if successor.has_ended:
                raise _FailedError(f"it {successor.how_it_ended} before it was ready")
            if deadline.is_past:
                raise _FailedError(f"it was not {what} within {self._settings.ready_within:g} s")

    def _commit(
        self, successor: Successor, channel: Channel, offered: list[PersistentRegistration], adopted: set[str]
    ) -> None:
        if self._routine.is_stopping:
            raise _StoppedError("this process is being stopped")
        with self._kept_sockets():
            if not channel.send({"yours": True}):
                raise _FailedError("it ended in the moment in which it was ready")
        supervisor.handed_over(successor.pid)
        # In this order: a stop that began a moment ago waits for the registrations, and its report must know.
        self._routine.hand_over_to(successor.pid)
        for registration in offered:
            registration.settle(is_handed_over=registration.key in adopted)

    @contextmanager
    def _kept_sockets(self) -> Iterator[None]:
        """From now on our stop does nothing to the sockets; unless the block fails."""
        sockets = [sock for sock in process_sockets().in_use if sock.keeper != SUPERVISOR]
        for sock in sockets:
            sock.keep_for(HANDED_OVER)
        try:
            yield
        except BaseException:
            for sock in sockets:
                sock.keep_for("")
            raise

    # --- the way back -------------------------------------------------------------------------------------------------

    def _fail(self, successor: Successor, channel: Channel, offered: list[PersistentRegistration], why: str) -> None:
        self._take_back(offered)
        channel.send({"taken": True})
        self._tell_failure(successor.pid, why)
        successor.signal(signal.SIGTERM)
        deadline = Deadline.after(self._settings.end_within, self._clock)
        while not successor.wait(Deadline.after(_LOOK_S, self._clock)):
            if self._routine.is_stopping:
                self._end_for_stop(successor, channel, offered)
                return
            if deadline.is_past:
                logger.warning("pid %d did not end within %g s: killed", successor.pid, self._settings.end_within)
                successor.signal(signal.SIGKILL)
                successor.wait(Deadline.after(_LEAVE_LIMIT, self._clock))
                break
        self._take_back(offered)

    def _end_for_stop(self, successor: Successor, channel: Channel, offered: list[PersistentRegistration]) -> None:
        """End it; when this returns it is out of the registries, be it that its requests still finish."""
        self._routine.tell(HandoverFailed(successor.pid, "this process is being stopped", is_serving_on=False))
        successor.signal(signal.SIGTERM)
        deadline = Deadline.after(_LEAVE_LIMIT, self._clock)
        try:
            while not deadline.is_past and not successor.has_ended:
                message = channel.receive(Deadline.after(_LOOK_S, self._clock))
                if message is not None and "failed" in message:
                    channel.send({"taken": True})
            if not successor.has_ended:
                successor.signal(signal.SIGKILL)
                successor.wait(Deadline.after(_LEAVE_LIMIT, self._clock))
                self._take_back(offered)  # what it has left behind would stay for as long as a session lasts
        except ChannelClosedError:
            pass  # it has left
        for registration in offered:
            registration.settle(is_handed_over=False)
        successor.wait(Deadline.after(self._settings.end_within, self._clock))
        successor.signal(signal.SIGKILL)
        successor.wait(Deadline.after(_LEAVE_LIMIT, self._clock))

    def _take_back(self, offered: list[PersistentRegistration]) -> None:
        for registration in offered:
            try:
                registration.take_back(Deadline.after(_TAKE_BACK_LIMIT, self._clock))
            except RegistryDrainError as error:  # noqa: PERF203 - each for itself
                logger.warning("%s could not be taken back from the new process: %s", registration.instance, error)

    def _tell_failure(self, pid: int, why: str) -> None:
        is_serving_on = not self._routine.is_stopping
        self._routine.tell(HandoverFailed(pid, why, is_serving_on=is_serving_on))
        if is_serving_on:
            supervisor.ready(f"serving; a hand-over failed: {why}")


def _port_of(address: object) -> int:
    return int(address[1]) if isinstance(address, tuple) else 0
