"""A Thrift service written by hand: ``binary call(1: binary payload)`` and ``oneway void note(1: binary payload)``.

Small enough to see every byte, and free to use any transport and protocol.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.Thrift import TMessageType, TProcessor, TType
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransportFactory, TTransportException


class EchoProcessor(TProcessor):  # type: ignore[misc]  # thrift is not annotated
    """Answers ``call`` with ``serve(payload)``, and hands ``note``'s payload to ``serve`` as well."""

    def __init__(self, serve: Callable[[bytes], bytes]) -> None:
        """Serve with ``serve``."""
        self._serve = serve

    def process(self, iprot: Any, oprot: Any) -> bool:
        """Serve one message."""
        name, kind, sequence = iprot.readMessageBegin()
        payload = _read(iprot)
        iprot.readMessageEnd()
        answer = self._serve(payload)
        if kind != TMessageType.ONEWAY:
            _write(oprot, name, TMessageType.REPLY, sequence, answer)
        return True


class EchoClient:
    """One connection: a :class:`~registry_drain.testing.server_contract.ContractClient`."""

    def __init__(
        self,
        address: tuple[str, int],
        transports: Any = None,
        protocols: Any = None,
        *,
        timeout: float = 10.0,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> None:
        """Connect; the factories default to buffered and binary."""
        # Not by TSocket.open(), which hides what went wrong.
        self.sock = socket.socket(family)
        # Or a pipelined request, though sent, may still be here when the server says goodbye.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self._tsocket = TSocket()
        self._tsocket.setHandle(self.sock)
        transport = (transports or TBufferedTransportFactory()).getTransport(self._tsocket)
        self._protocol = (protocols or TBinaryProtocolFactory()).getProtocol(transport)

    def send(self, payload: bytes, *, name: str = "call", kind: int = TMessageType.CALL) -> None:
        """Send one request."""
        try:
            _write(self._protocol, name, kind, 0, payload)
        except TTransportException as error:
            raise (error.inner or error) from error

    def receive(self) -> bytes:
        """Return the next answer, or raise EOFError."""
        try:
            self._protocol.readMessageBegin()
            answer = _read(self._protocol)
            self._protocol.readMessageEnd()
        except TTransportException as error:
            if error.type == TTransportException.END_OF_FILE:
                raise EOFError from error
            raise (error.inner or error) from error
        return answer

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


class TlsEchoClient(EchoClient):
    """The same over TLS."""

    def __init__(
        self,
        address: tuple[str, int],
        authority: Path,
        *,
        transports: Any = None,
        certificate: tuple[Path, Path] | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Connect and shake hands; ``certificate`` and its key are ours."""
        super().__init__(address, transports, timeout=timeout)
        try:
            context = ssl.create_default_context(cafile=str(authority))
            if certificate is not None:
                context.load_cert_chain(*certificate)
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
        except OSError:
            self.sock.close()
            raise
        self._tsocket.setHandle(self.sock)


def encoded(payload: bytes, *, name: str = "call") -> bytes:
    """Return a call as it travels unframed in the binary protocol."""
    head = struct.pack("!I", 0x80010000 | TMessageType.CALL) + struct.pack("!I", len(name)) + name.encode() + bytes(4)
    return head + struct.pack("!bhI", TType.STRING, 1, len(payload)) + payload + bytes(1)


def _read(protocol: Any) -> bytes:
    payload = b""
    protocol.readStructBegin()
    while True:
        _, kind, _ = protocol.readFieldBegin()
        if kind == TType.STOP:
            break
        payload = protocol.readBinary()
        protocol.readFieldEnd()
    protocol.readStructEnd()
    return payload


def _write(protocol: Any, name: str, kind: int, sequence: int, payload: bytes) -> None:
    protocol.writeMessageBegin(name, kind, sequence)
    protocol.writeStructBegin("payload")
    protocol.writeFieldBegin("payload", TType.STRING, 1)
    protocol.writeBinary(payload)
    protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()
    protocol.writeMessageEnd()
    protocol.trans.flush()
