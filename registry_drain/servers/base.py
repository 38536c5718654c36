"""The protocol of a server adapter. No server library is imported here.

The stop routine calls, in this order and from one thread: ``close_listener``, ``drain``, and ``cut_off`` for what is
left. Until ``close_listener`` the server serves normally. The contract suite is
:mod:`registry_drain.testing.server_contract`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from registry_drain.clock import Deadline
from registry_drain.servers.in_flight import InFlight, InFlightRequest


@dataclass(frozen=True, slots=True)
class ListenerClosure:
    """How a listener was closed.

    Attributes:
        method: what kept the backlog from being reset, e.g. ``"SYN filter"``; shown in the report.
        accepted: connections taken from the backlog after new ones were held off.
        is_clean: whether the backlog was seen empty before the close.
    """

    method: str
    accepted: int = 0
    is_clean: bool = True


class DrainableServer(Protocol):
    """A server that can be stopped without losing a request."""

    @property
    def in_flight(self) -> InFlight:
        """The server's requests."""
        ...

    def start(self) -> tuple[str, int]:
        """Bind, listen, and serve from threads of the adapter's own; return the bound address and port.

        Connections are accepted when this returns.

        Raises:
            OSError: the address cannot be bound.
            ServerError: started or stopped before.
        """
        ...

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Stop accepting without resetting what the kernel has accepted into the backlog: that is served.

        Idempotent. Works on a server that was never started. Returns when the listener is closed.
        """
        ...

    def drain(self, deadline: Deadline) -> bool:
        """Let what is in flight finish and close idle connections the way their protocol does it politely.

        Returns whether everything finished; False at the deadline, with the rest untouched. Works on a server never
        started.
        """
        ...

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Close every connection that is left, at once, and return the requests that were cut. Frees the adapter's
        threads.

        After this (also when nothing was left) the adapter holds no socket and no thread, but for those stuck in a
        handler.
        """
        ...
