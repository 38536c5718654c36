"""Listening sockets: closing them without resetting a connection.

``hold_off`` keeps new connections away; ``drainable`` is a listener with an accept loop of ours, and its stop;
``address`` finds listening sockets, others' too, and looks into their backlogs.
"""

from registry_drain.servers.listener.address import backlog_length, bound_address, listening_sockets
from registry_drain.servers.listener.drainable import DrainableListener, ListenerStoppedError
from registry_drain.servers.listener.hold_off import (
    DEFAULT_HOLD_OFFS,
    ROUND_TRIP,
    HeldOff,
    HoldOff,
    hold_off,
    hold_off_by_backlog,
    hold_off_by_filter,
    prepare,
)

__all__ = [
    "DEFAULT_HOLD_OFFS",
    "ROUND_TRIP",
    "DrainableListener",
    "HeldOff",
    "HoldOff",
    "ListenerStoppedError",
    "backlog_length",
    "bound_address",
    "hold_off",
    "hold_off_by_backlog",
    "hold_off_by_filter",
    "listening_sockets",
    "prepare",
]
