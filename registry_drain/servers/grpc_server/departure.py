"""Waits for clients to leave, before the server is told to stop.

Theory of operation: ``server.stop()`` tells clients to leave by a GOAWAY, and at the same moment begins to cancel what
the C core has received and Python has not yet taken (grpc/grpc#41785). A call that crosses the GOAWAY is lost. So it is
called when nothing can cross it any more: when no connection is left; or, with a maximal connection age, when each has
been told by its age; or, without, when no call has come for a while.
"""

from __future__ import annotations

import logging
import time

from registry_drain.clock import Deadline
from registry_drain.servers.grpc_server.connection_age import AGE, JITTER, Options, age_of
from registry_drain.servers.grpc_server.counting import Calls
from registry_drain.servers.grpc_server.ports import Ports

logger = logging.getLogger(__name__)

IDLE_QUIET = 0.1
"""Seconds without a new call before the server stops under connections that are idle."""

PATIENCE = 1.0
"""Seconds that calls which never pause may delay that: without a connection age they will not stop."""

_AGE_SLACK = 0.2
"""Seconds for the GOAWAYs of the last connections to arrive and be acknowledged."""

_RESERVE = 0.1
"""Part of the drain that is kept for the calls in flight after the stop."""

_LOOK_EVERY = 0.010
_LATE_LOOK = 0.050
"""A look that comes so much later than it should says that threads wait for the interpreter lock: a call that has
arrived may be waiting, too.
"""


class Departure:
    """Waits for the clients of one server to leave.

    Args:
        ports: the server's.
        calls: what counts its calls.
        options: the server's.
        idle_quiet: seconds without a new call before it may stop under open connections.
    """

    def __init__(self, ports: Ports, calls: Calls, options: Options, idle_quiet: float) -> None:
        self._ports = ports
        self._calls = calls
        self._age = age_of(options)
        self._idle_quiet = idle_quiet

    def wait(self, deadline: Deadline) -> None:
        """Return when stopping is safe, or when waiting longer is of no use. Bounded by a part of ``deadline``."""
        # Real time besides the deadline's: connections and their age are the C core's.
        began_at = time.monotonic()
        until = Deadline(deadline.at - deadline.remaining() * _RESERVE, deadline.clock)
        told_after = None if self._age is None else self._age * JITTER + _AGE_SLACK
        if told_after is not None and told_after > until.remaining():
            logger.warning(
                "%s=%.0f does not fit a drain of %.1f s: calls of clients that ignore the registry may be lost",
                AGE,
                (self._age or 0) * 1000,
                deadline.remaining(),
            )
            told_after = None
        quiet_since = looked_at = began_at
        while not until.is_past:
            connections = self._ports.connections()
            now = time.monotonic()
            if not connections:
                return
            if told_after is not None:
                if now - began_at >= told_after:
                    return
            else:
                if now - looked_at > _LATE_LOOK:
                    quiet_since = now
                quiet_since = max(quiet_since, self._calls.taken_at)
                if now - quiet_since >= self._idle_quiet:
                    return
                if now - began_at >= PATIENCE:
                    logger.warning(
                        "%d connections are still in use: their clients ignore the registry and may lose calls; "
                        "set %s, see connection_age_options()",
                        connections,
                        AGE,
                    )
                    return
            looked_at = time.monotonic()
            # Looking at thousands of descriptors takes a while: leave the processor to the calls for as long.
            time.sleep(min(max(_LOOK_EVERY, 2 * (looked_at - now)), max(until.remaining(), 0.0)))
