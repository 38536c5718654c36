"""The demo's Thrift service, ``i32 work(1: i32 delay_ms)``, as the Thrift compiler would make it, but in one page.

Written by hand because a compiler's output of 300 lines would be the largest file of the package, and nobody's to read.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolFactory
from thrift.server.TServer import TThreadedServer
from thrift.Thrift import TMessageType, TProcessor, TType
from thrift.transport.TSocket import TServerSocket, TSocket
from thrift.transport.TTransport import TBufferedTransport, TBufferedTransportFactory

_METHOD = "work"
_ARGUMENT, _RESULT = 1, 0
"""Field numbers, as in every Thrift service: arguments count from 1, the result is 0."""


class Processor(TProcessor):  # type: ignore[misc]  # thrift has no annotations
    """Answers each call with its own argument, after that many milliseconds."""

    def process(self, requests: Any, replies: Any) -> bool:
        """Serve one message."""
        name, _, sequence = requests.readMessageBegin()
        delay_ms = _read_i32(requests)
        requests.readMessageEnd()
        time.sleep(delay_ms / 1000)  # stands for a query to a database, which frees the interpreter too
        replies.writeMessageBegin(name, TMessageType.REPLY, sequence)
        _write_i32(replies, _RESULT, delay_ms)
        replies.writeMessageEnd()
        replies.trans.flush()
        return True


def new_server(host: str, port: int) -> TThreadedServer:
    """Return a server with a thread for each connection, not yet listening. Its threads end with the process."""
    return TThreadedServer(
        Processor(), TServerSocket(host, port), TBufferedTransportFactory(), TBinaryProtocolFactory(), daemon=True
    )


class Caller:
    """One open connection to one instance. For one thread."""

    def __init__(self, host: str, port: int, *, timeout: float) -> None:
        """Connect.

        Raises:
            TTransportException: nobody listens there.
        """
        self._socket = TSocket(host, port)
        self._socket.setTimeout(timeout * 1000)
        self._protocol = TBinaryProtocol(TBufferedTransport(self._socket))
        self._protocol.trans.open()

    def work(self, delay_ms: int) -> None:
        """Make one call.

        Raises:
            TTransportException: the connection was lost, or there was no answer in time.
            ValueError: the answer is not the right one.
        """
        protocol = self._protocol
        protocol.writeMessageBegin(_METHOD, TMessageType.CALL, 0)
        _write_i32(protocol, _ARGUMENT, delay_ms)
        protocol.writeMessageEnd()
        protocol.trans.flush()
        _, kind, _ = protocol.readMessageBegin()
        answer = _read_i32(protocol)
        protocol.readMessageEnd()
        if kind != TMessageType.REPLY or answer != delay_ms:
            raise ValueError(f"asked {delay_ms}, answered {answer}")

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Caller:
        """Use as a context: hangs up at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        self.close()


def _write_i32(protocol: Any, field: int, value: int) -> None:
    protocol.writeStructBegin(_METHOD)
    protocol.writeFieldBegin("", TType.I32, field)
    protocol.writeI32(value)
    protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()


def _read_i32(protocol: Any) -> int:
    value = 0
    protocol.readStructBegin()
    while True:
        _, kind, _ = protocol.readFieldBegin()
        if kind == TType.STOP:
            break
        if kind == TType.I32:
            value = protocol.readI32()
        else:
            protocol.skip(kind)
        protocol.readFieldEnd()
    protocol.readStructEnd()
    return value
