"""The gRPC and RPyC examples, run the way their reader would run them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.processes import ManagedProcess, await_connection, free_port

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("example", "arguments"),
    [("grpc_greeter", ()), ("grpc_greeter", ("--aio",)), ("rpyc_calculator", ())],
    ids=["grpc", "grpc-aio", "rpyc"],
)
def test_a_server_is_replaced_under_a_client_that_follows(
    tmp_path: Path, example: str, arguments: tuple[str, ...]
) -> None:
    """Two servers on the embedded registry, one of them told to stop while a client calls: not one call fails."""
    registry = ("--registry", f"local://{tmp_path}/cluster")
    ports = {"first": free_port(), "second": free_port()}

    def server(name: str) -> ManagedProcess:
        module = f"examples.{example}.server"
        port = ("--port", str(ports[name]))
        return ManagedProcess.python("-m", module, *registry, *port, *arguments, log=tmp_path / f"{name}.log")

    with server("first") as first, server("second") as second:
        for each in (first, second):
            each.wait_output("registered")
        module = f"examples.{example}.client"
        with ManagedProcess.python("-m", module, *registry, "--seconds", "6", log=tmp_path / "client.log") as client:
            await_connection(ports["first"])  # it is met by the client before it goes
            first.signal(signal.SIGTERM)
            assert first.wait(timeout=60) == 0, first.output()
            assert client.wait(timeout=60) == 0, client.output()
        second.signal(signal.SIGTERM)
        assert second.wait(timeout=60) == 0, second.output()
    assert " 0 failed" in client.output()
    assert int(client.output().split()[0]) > 10
