"""Tracking in a child: what it serves is written into its slot of the shared table, where the parent reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from registry_drain.servers.connections import Connection
from registry_drain.servers.thrift_server.messages import Header, ReadHeader, end_if_closed
from registry_drain.servers.thrift_server.shared_table import NOTED_ALWAYS, Slot
from registry_drain.servers.thrift_server.tracking import Tracking


class SharedTracking(Tracking):
    """Tracking that keeps the child's slot up to date.

    Attributes:
        slot: the child's; set before the first connection.
    """

    slot: Slot

    def adopt(self, client: Any) -> Connection:
        """See :meth:`Tracking.adopt`."""
        connection = super().adopt(client)
        slot = self.slot
        slot.open(connection.peer)
        close: Callable[[], None] = client.close

        def close_and_tell() -> None:
            close()
            slot.note(connection.arrived_at, slot.served)
            slot.close()

        client.close = close_and_tell
        return connection

    def read_header_of(self, protocol: Any, connection: Connection) -> ReadHeader:
        """Return what reads a message's header, and tells of it."""
        read_header = super().read_header_of(protocol, connection)
        slot = self.slot
        now = time.monotonic

        def read_and_tell() -> Header:
            slot.rest()
            header = read_header()
            slot.rename(header[0])
            if self.is_health_check(header[0]):
                slot.started_at = now()
                slot.is_checked = 1
            else:
                slot.arrived_at = now()
                slot.noted = NOTED_ALWAYS
                slot.served += 1
            return header

        return read_and_tell

    def watch_serving(self, protocol: Any, connection: Connection, read_header: ReadHeader) -> ReadHeader:
        """See :meth:`Tracking.watch_serving`."""
        if connection.is_timed:
            return super().watch_serving(protocol, connection, read_header)
        slot = self.slot
        read_plainly: ReadHeader = protocol.readMessageBegin
        served, last_name = slot.served, None

        # watch_only and read_and_tell in one, as it is on the path of every request: two more writes to the slot and a
        # look at the clock were 3 % of a server that only echoes.
        def read_message_begin() -> Header:
            nonlocal served, last_name
            connection.boundary = connection.received
            slot.answered = served
            header = read_plainly()
            if connection.is_half_closed:
                end_if_closed(connection)
            name = header[0]
            if name != last_name:
                last_name = name
                slot.rename(name)
            connection.name = name
            connection.served = served = served + 1
            slot.served = served
            return header

        return read_message_begin
