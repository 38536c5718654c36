"""The calculator examples on every kind of server: replaced under a client that follows the registry."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from tests.support.processes import ManagedProcess, await_connection, free_port

pytestmark = pytest.mark.slow

KINDS = {
    "pool": ["thrift_calculator", "--kind", "pool"],
    "simple": ["thrift_calculator", "--kind", "simple"],
    "forking": ["thrift_calculator", "--kind", "forking"],
    "process-pool": ["thrift_calculator", "--kind", "process-pool"],
    "nonblocking": ["thrift_calculator", "--kind", "nonblocking"],
    "thriftpy2": ["thriftpy2_calculator"],
    "thriftpy2-aio": ["thriftpy2_calculator", "--aio"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_is_replaced_under_a_client_that_follows(kind: str, tmp_path: Path) -> None:
    """Two servers, one of them told to stop while a client calls: not one call fails."""
    registry = f"local://{tmp_path}/cluster"
    example, *options = KINDS[kind]

    ports = {"first": free_port(), "second": free_port()}

    def server(name: str) -> ManagedProcess:
        module = f"examples.{example}.server"
        arguments = ["-m", module, "--registry", registry, "--port", str(ports[name]), *options]
        return ManagedProcess.python(*arguments, log=tmp_path / f"{name}.log")

    def client() -> ManagedProcess:
        module = "examples.thrift_calculator.client"
        framed = ["--framed"] if kind == "nonblocking" else []
        arguments = ["-m", module, "--registry", registry, "--seconds", "3", *framed]
        return ManagedProcess.python(*arguments, log=tmp_path / "client.log")

    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(server(name)) for name in ("first", "second"))
        for each in (first, second):
            each.wait_output("registered")
        calling = stack.enter_context(client())
        await_connection(ports["first"])  # it is met by the client before it goes
        first.signal(signal.SIGTERM)
        assert first.wait() == 0, first.output()
        assert calling.wait() == 0, calling.output()
        second.signal(signal.SIGTERM)
        assert second.wait() == 0, second.output()
    assert " 0 failed" in calling.output()
