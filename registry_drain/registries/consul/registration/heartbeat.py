"""The thread that keeps a registration alive: it beats, survives every failure, and ends when told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import LiveOwnerError, RegistryDrainError

_log = logging.getLogger(__name__)

RECOVERY_PAUSE = 1.0
"""Seconds between attempts while the agent does not answer: it is on this host, asking costs nothing."""


class Heartbeat:
    """Calls ``beat`` every ``pause`` seconds, from a daemon thread of its own, until ``stop`` is set.

    ``beat`` returns what is wrong although it was answered, or an empty string. It raises LiveOwnerError to end the
    thread; any other error means: try again soon. Trouble is logged when it begins and when it ends, not in between.
    """

    def __init__(
        self, subject: str, beat: Callable[[], str], pause: float, stop: threading.Event, clock: Clock
    ) -> None:
        """Prepare; ``subject`` names the instance and its registry in log lines."""
        self._subject = subject
        self._beat = beat
        self._pause = pause
        self._stop = stop
        self._clock = clock
        self._trouble = ""
        self._first_pause = pause
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"registry-drain-consul-heartbeat {subject}", daemon=True
        )

    def start(self, first_pause: float) -> None:
        """Begin, with the first beat after ``first_pause`` seconds."""
        self._first_pause = first_pause
        self._thread.start()

    def join(self, deadline: Deadline) -> None:
        """Wait until the thread has ended, at most until ``deadline``. Somebody must have set ``stop``."""
        if deadline.wait(self._ended):
            self._thread.join()

    def _run(self) -> None:
        pause = self._first_pause
        try:
            while not self._clock.wait(self._stop, pause):
                pause = self._pause
                try:
                    self._note(self._beat())
                except LiveOwnerError:
                    return
                except RegistryDrainError as error:
                    self._note(f"heartbeat failed, trying again: {error}")
                    pause = min(pause, RECOVERY_PAUSE)
                except Exception:  # noqa: BLE001 -- a heartbeat that dies silently takes the instance out of the cluster
                    _log.exception("%s: unexpected in a heartbeat; it goes on", self._subject)
        finally:
            self._ended.set()

    def _note(self, trouble: str) -> None:
        before, self._trouble = self._trouble, trouble
        if trouble and not before:
            _log.warning("%s: %s", self._subject, trouble)
        elif before and not trouble:
            _log.info("%s: heartbeat works again", self._subject)
