"""Closing the listeners of asyncio servers: what was accepted is served, what was not is somebody else's."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, suppress

from registry_drain.servers.asyncio_listeners import leave_listeners

PATIENCE = 10.0
MOST_CLIENTS = 40


async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say hello, and hang up."""
    writer.write(b"hello")
    with suppress(ConnectionError):
        await writer.drain()
    writer.close()


async def leave_while_clients_connect(listener: socket.socket, clients: list[socket.socket]) -> None:
    """Stop serving from ``listener``, while each turn of the loop another client connects."""
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(greet, sock=listener)
    has_left = asyncio.Event()

    def connect_one() -> None:
        if not has_left.is_set() and len(clients) < MOST_CLIENTS:
            clients.append(socket.create_connection(listener_address, timeout=PATIENCE))
            loop.call_soon(connect_one)

    listener_address = listener.getsockname()
    connect_one()
    await leave_listeners([sock.fileno() for sock in server.sockets], server.close)
    has_left.set()
    for _ in range(20):  # what was accepted is served
        await asyncio.sleep(0.005)


def test_who_leaves_a_shared_listener_drops_nothing_that_it_has_accepted() -> None:
    """Clients go on connecting all the while, for others accept from the same socket: each is served here, or is left.

    A server that is closed just after it has accepted resets the connection (cpython#109564).
    """
    clients: list[socket.socket] = []
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=MOST_CLIENTS))
        others = opened.enter_context(listener.dup())
        asyncio.run(leave_while_clients_connect(listener, clients))
        for client in clients:
            opened.enter_context(client)
        left = set()
        others.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                connection, address = others.accept()
                opened.enter_context(connection)
                left.add(address)
        served = [client for client in clients if client.getsockname() not in left]
        assert len(clients) > 5, "clients connected while the loop was leaving"
        assert [client.recv(100) for client in served] == [b"hello"] * len(served)
