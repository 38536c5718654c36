"""What the subjects of Thrift and thriftpy2 share: the service, and how they are run."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from thrift.Thrift import TMessageType, TProcessor, TType

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.base import DrainableServer


class EchoProcessor(TProcessor):  # type: ignore[misc]  # thrift is not annotated
    """``binary call(1: binary payload)``: answers with the payload, after a while."""

    def process(self, iprot: Any, oprot: Any) -> bool:
        """Serve one message."""
        name, _, sequence = iprot.readMessageBegin()
        payload = b""
        iprot.readStructBegin()
        while iprot.readFieldBegin()[1] != TType.STOP:
            payload = iprot.readBinary()
            iprot.readFieldEnd()
        iprot.readStructEnd()
        iprot.readMessageEnd()
        time.sleep(subject.WORK_S)
        oprot.writeMessageBegin(name, TMessageType.REPLY, sequence)
        oprot.writeStructBegin("result")
        oprot.writeFieldBegin("success", TType.STRING, 0)
        oprot.writeBinary(payload)
        oprot.writeFieldEnd()
        oprot.writeFieldStop()
        oprot.writeStructEnd()
        oprot.writeMessageEnd()
        oprot.trans.flush()
        return True


def run(
    given: subject.Options,
    listen: Callable[[], None],
    serve: Callable[[], None],
    adapter: Callable[[], DrainableServer],
) -> None:
    """Serve until SIGTERM.

    Args:
        given: the options.
        listen: makes the server listen, so that ``serve`` need not.
        serve: runs the server's own loop.
        adapter: makes it drainable.
    """
    if given.is_drained:
        service = Service(adapter(), given.registry, service=given.service, budget=subject.BUDGET)
        subject.say_ready_when_started(service)
        service.run()
        return
    listen()
    deregister = subject.naive_registration(given)
    # None of these servers has a stop of its own that can be called from here; this is what their users do.
    signal.signal(signal.SIGTERM, _leave)
    subject.say_ready()
    try:
        serve()
    finally:
        deregister()


def run_thrift(given: subject.Options, server: Any, adapter: Callable[[Any], DrainableServer]) -> None:
    """Run one of Apache Thrift's servers."""
    transport = server.serverTransport if hasattr(server, "serverTransport") else server.socket

    def listen() -> None:
        transport.listen()
        transport.listen = _do_nothing

    run(given, listen, server.serve, lambda: adapter(server))


def _leave(_number: int, _frame: object) -> None:
    sys.exit()


def _do_nothing() -> None:
    """The transport listens already."""
