"""The old process, as the new one sees it.

Theory of operation: one thread of ours listens to it from the moment in which we listen, until it says that everything
is ours, or is gone, or we stop. Rules:

1. Until then the inherited sockets and the adopted entries are the old one's: a stop of ours leaves the former alone,
   and says ``failed`` before it touches the latter, so that the old one can take them back first.
2. The end of the channel without a word means that the old one was killed: then everything is ours.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, MutableMapping

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import ConfigurationError
from registry_drain.handover.channel import Channel, ChannelClosedError
from registry_drain.handover.successor import PREDECESSOR_VARIABLE
from registry_drain.persistent_registration import PersistentRegistration
from registry_drain.phases import Phase
from registry_drain.servers.listener.activation import PREDECESSOR, process_sockets
from registry_drain.shutdown.events import logger as log

logger = logging.getLogger(__name__)

_OFFERS_WITHIN = 30.0
"""Seconds; the old process answers at once, or has ended us by then."""
_POLL_S = 0.01
_FOR_EVER_S = 3600.0


class Predecessor:
    """The channel to the old process. ``offers`` first, then ``follow``; ``leave`` from any thread."""

    def __init__(self, channel: Channel, clock: Clock) -> None:
        """Take the channel."""
        self._channel = channel
        self._clock = clock
        self._is_over = threading.Event()  # nothing more will come, or nothing more matters
        self._is_answered = threading.Event()
        self._registrations: list[PersistentRegistration] = []

    @classmethod
    def from_environment(cls, clock: Clock, environ: MutableMapping[str, str] = os.environ) -> Predecessor | None:
        """Return it if this process was started by a hand-over; the variable is removed.

        Raises:
            ConfigurationError: the variable is not what a hand-over sets.
        """
        told = environ.pop(PREDECESSOR_VARIABLE, "")
        if not told:
            return None
        try:
            pid, descriptor = (int(each) for each in told.split(":"))
            if pid != os.getpid():
                return None  # meant for a parent of ours
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - os' own signature
            return cls(Channel(socket.socket(fileno=descriptor)), clock)
        except (ValueError, OSError) as error:
            raise ConfigurationError(
                f"{PREDECESSOR_VARIABLE}={told!r}: {error}; only a hand-over sets it: unset it"
            ) from error

    def offers(self) -> dict[str, str]:
        """Say that we listen; return the registrations that may be adopted, by their keys. Blocks until answered."""
        self._channel.send({"listening": True})
        try:
            message = self._channel.receive(Deadline.after(_OFFERS_WITHIN, self._clock))
        except ChannelClosedError:
            message = None
        offers = (message or {}).get("offers", {})
        return {str(key): str(offer) for key, offer in offers.items()} if isinstance(offers, dict) else {}

    def follow(self, registrations: Iterable[PersistentRegistration], on_ours: Callable[[], None]) -> None:
        """Say ``ready`` as soon as all are registered, and wait for the old one's word, in a thread of ours."""
        self._registrations = list(registrations)
        threading.Thread(
            target=self._follow, args=(on_ours,), name="registry-drain-handover-predecessor", daemon=True
        ).start()

    def leave(self, deadline: Deadline) -> None:
        """Say that we fail, and wait until the old one has taken back what it offered, or is gone."""
        if self._channel.send({"failed": True}):
            deadline.wait(self._is_answered)

    def watch(self, phase: Phase) -> None:
        """Close the channel when we have left the registries: the old one waits for that. A watcher of the stop."""
        if phase.value >= Phase.PROPAGATING.value:
            self._is_over.set()
            self._channel.close()

    def _follow(self, on_ours: Callable[[], None]) -> None:
        is_said = False
        try:
            while True:
                if not is_said and all(each.is_registered for each in self._registrations):
                    is_said = True
                    self._channel.send({"ready": [each.key for each in self._registrations if each.is_adopted]})
                wait = _FOR_EVER_S if is_said else _POLL_S
                message = self._channel.receive(Deadline.after(wait, self._clock))
                if message and "taken" in message:
                    self._is_answered.set()
                if message and "yours" in message:
                    break
        except ChannelClosedError:
            if self._is_over.is_set() or self._is_answered.is_set():
                return
            log.warning("the process that handed over to this one is gone before it said so: going on alone")
        finally:
            self._is_answered.set()
        for sock in process_sockets().in_use:
            if sock.keeper == PREDECESSOR:
                sock.keep_for("")
        for registration in self._registrations:
            registration.confirm()
        process_sockets().close_unused()
        self._channel.close()
        on_ours()
