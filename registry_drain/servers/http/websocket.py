"""One WebSocket of an ASGI application, and how it is sent away: with close code 1001, going away (RFC 6455, 7.4.1).

Theory of operation: most applications answer each message before they ask for the next one. So a WebSocket is closed at
once while its application waits for a message, and otherwise when it asks for the next one. The close is sent by the
middleware; the server then tells the application ``websocket.disconnect``, as it does after every close.

Rules:

1. A message that is being sent is finished before the close.
2. After the close the application's sends raise ``OSError``, as the ASGI specification (2.4) has it for a client that
   is gone.
3. An application that never asks (it only pushes) is closed in between two sends when :meth:`WebSocket.close_now` says
   so; the middleware does at half of the time that is left.
"""

from __future__ import annotations

import asyncio

from registry_drain.servers.http.asgi_types import Message, Receive, Send

GOING_AWAY = 1001
REASON = "this instance is stopping"


class WebSocket:
    """Stands between an application and its server for one connection. For one event loop, whose tasks may share it.

    Attributes:
        is_open: the handshake is over, and nobody has closed it yet.
        task: serves it; None where the loop is not asyncio's.
        is_cut: the middleware has cancelled it.
    """

    __slots__ = ("_is_due", "_is_forced", "_receive", "_receiving", "_send", "_sending", "is_cut", "is_open", "task")

    def __init__(self, receive: Receive, send: Send) -> None:
        """Take the server's two ends."""
        self._receive = receive
        self._send = send
        self._receiving = 0
        self._sending = 0
        self._is_due = False
        self._is_forced = False
        self.is_open = False
        self.task: asyncio.Task[object] | None = None
        self.is_cut = False

    async def receive(self) -> Message:
        """Return the next message, for the application."""
        self._receiving += 1
        try:
            await self._close_if_due()
            message = await self._receive()
        finally:
            self._receiving -= 1
        if message["type"] == "websocket.disconnect":
            self.is_open = False
        return message

    async def send(self, message: Message) -> None:
        """Send for the application.

        Raises:
            OSError: the connection was closed because the instance is stopping.
        """
        kind = message["type"]
        if kind == "websocket.send" and self._is_due and not self.is_open:
            raise ConnectionAbortedError("the WebSocket was closed: this instance is stopping")
        if kind == "websocket.close":
            if self._is_due and not self.is_open:
                return  # we were faster
            self.is_open = False
        self._sending += 1
        try:
            await self._send(message)
        finally:
            self._sending -= 1
        if kind == "websocket.accept":
            self.is_open = True
        elif self._is_due:
            await self._close_if_due()

    async def close(self) -> None:
        """Close as soon as the application waits for a message."""
        self._is_due = True
        await self._close_if_due()

    async def close_now(self) -> None:
        """Close, even if the application does not ask for messages; behind the message that is being sent."""
        self._is_due = self._is_forced = True
        await self._close_if_due()

    async def _close_if_due(self) -> None:
        # Nothing is awaited between the test and the mark, so of several tasks one closes.
        if self._is_due and self.is_open and not self._sending and (self._receiving or self._is_forced):
            self.is_open = False
            await self._send({"type": "websocket.close", "code": GOING_AWAY, "reason": REASON})
