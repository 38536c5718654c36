"""Listening sockets: closing them without resetting a connection.

``hold_off`` keeps new connections away, by one of several methods, of which ``decoy`` is one and ``packet_program``
serves two; ``drainable`` is a listener with an accept loop of ours, and its stop; ``bound_path`` is a Unix socket's
file; ``address`` finds listening sockets, others' too, and looks into their backlogs.
"""

from registry_drain.servers.listener.address import backlog_length, bound_address, has_backlog, listening_sockets
from registry_drain.servers.listener.bound_path import BoundPath
from registry_drain.servers.listener.drainable import DrainableListener, ListenerStoppedError
from registry_drain.servers.listener.hold_off import (
    DEFAULT_HOLD_OFFS,
    ROUND_TRIP,
    HeldOff,
    HoldOff,
    hold_off,
    hold_off_by_backlog,
    hold_off_by_decoy,
    hold_off_by_filter,
    hold_off_by_shutdown,
    prepare,
)

__all__ = [
    "DEFAULT_HOLD_OFFS",
    "ROUND_TRIP",
    "BoundPath",
    "DrainableListener",
    "HeldOff",
    "HoldOff",
    "ListenerStoppedError",
    "backlog_length",
    "bound_address",
    "has_backlog",
    "hold_off",
    "hold_off_by_backlog",
    "hold_off_by_decoy",
    "hold_off_by_filter",
    "hold_off_by_shutdown",
    "listening_sockets",
    "prepare",
]
