"""What becomes of an HTTP request, by its path and by where the stop is.

===============================  =====================================================================================
while                            a request
===============================  =====================================================================================
serving, deregistering           is served
propagating, closing             is served, with ``Connection: close``
draining                         is served, with ``Connection: close``: it comes on a connection that was never told to,
                                 and its client did nothing wrong. With ``refuses_when_sealed`` it is refused
no time is left, or drained      is refused: 503 with ``Retry-After`` (RFC 9110, 15.6.4 and 10.2.3)
===============================  =====================================================================================

Health checks are served like the rest and are no sign that callers still know this instance; they are not refused while
there is time, for a probe that fails in the middle of a drain may get the process killed.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from registry_drain.errors import ConfigurationError
from registry_drain.phases import Phase
from registry_drain.servers.stop_state import StopState

REFUSAL = b"this instance is stopping: try again, another one will answer\n"
UNREAD_LIMIT = 65_536
"""Bytes of a refused request's body that are read before the answer: a server that closes a connection with unread
bytes resets it, and the client may never see why.
"""
READY = b"ready\n"
STOPPING = b"stopping\n"


class Verdict(Enum):
    """What to do with a request."""

    SERVE = "serve"
    REFUSE = "refuse"
    """Answer 503 with Retry-After."""
    ANSWER_READINESS = "answer readiness"
    """Answer 200 or 503 by :attr:`StopState.is_stopping`; the application is not asked."""


class RequestPolicy:
    """Decides for one server's requests. Thread-safe: it has no state of its own.

    Args:
        stop_state: where the server's stop is.
        health_check_paths: exact paths that are health checks.
        readiness_path: this one is answered here, 200 while the instance should get traffic, 503 from the beginning of
            the stop; empty: none.
        refuses_when_sealed: refuse what comes once the listener is closed, as load balancers' filters do, instead of
            serving it while there is time.
        retry_after: seconds for the ``Retry-After`` of a refusal. Another instance could answer at once.

    Raises:
        ConfigurationError: a path does not begin with a slash, or ``retry_after`` is negative.
    """

    def __init__(
        self,
        stop_state: StopState,
        *,
        health_check_paths: Iterable[str] = (),
        readiness_path: str = "",
        refuses_when_sealed: bool = False,
        retry_after: int = 1,
    ) -> None:
        if isinstance(health_check_paths, str):
            raise ConfigurationError(f"health_check_paths={health_check_paths!r}: must be a collection of paths")
        self.health_check_paths = frozenset(health_check_paths) | ({readiness_path} if readiness_path else set())
        for path in self.health_check_paths:
            if not path.startswith("/"):
                raise ConfigurationError(f"{path!r} is no path: it must begin with a slash, without the host")
        if retry_after < 0:
            raise ConfigurationError(f"retry_after={retry_after}: must be seconds, 0 or more")
        self.stop_state = stop_state
        self.readiness_path = readiness_path
        self.refuses_when_sealed = refuses_when_sealed
        self.retry_after = str(retry_after)

    def verdict(self, path: str) -> Verdict:
        """Return what to do with a request that has just come for ``path``."""
        state = self.stop_state
        if self.readiness_path and path == self.readiness_path:
            return Verdict.ANSWER_READINESS
        if not state.is_stopping:
            return Verdict.SERVE
        if state.phase.value > Phase.DRAINING.value or state.time_left() == 0:
            return Verdict.REFUSE
        if self.refuses_when_sealed and state.is_draining and path not in self.health_check_paths:
            return Verdict.REFUSE
        return Verdict.SERVE
