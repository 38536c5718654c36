"""The connections of a server that blocks one thread for each: which are idle, and how they are closed politely.

``connection`` is one of them, and says how it is closed, by what the kernel says in ``tcp``; ``drain`` is all of them,
and ``spread`` how fast.
"""

from registry_drain.servers.connections.connection import NEW_QUIET, UNSURE_QUIET, Connection
from registry_drain.servers.connections.drain import IDLE_QUIET, LINGER, Connections, join_threads
from registry_drain.servers.connections.spread import SPREAD, Pace, checked_spread
from registry_drain.servers.connections.tcp import peer_name, pending_bytes, unacknowledged_bytes

__all__ = [
    "IDLE_QUIET",
    "LINGER",
    "NEW_QUIET",
    "SPREAD",
    "UNSURE_QUIET",
    "Connection",
    "Connections",
    "Pace",
    "checked_spread",
    "join_threads",
    "peer_name",
    "pending_bytes",
    "unacknowledged_bytes",
]
