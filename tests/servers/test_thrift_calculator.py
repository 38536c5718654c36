"""The calculator example, run the way its reader would run it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from examples.thrift_calculator.calculator.ttypes import DivisionByZero
from examples.thrift_calculator.client import Connection
from examples.thrift_calculator.server import Calculator, new_pool_server, new_threaded_server
from registry_drain.servers.thrift_server import ThriftServer
from tests.support.processes import ManagedProcess


@pytest.mark.parametrize("new_server", [new_threaded_server, new_pool_server])
def test_it_calculates(new_server: object) -> None:
    """Every method answers, and the declared exception arrives as itself."""
    assert callable(new_server)
    server = ThriftServer(new_server(Calculator(), "127.0.0.1", 0))
    client = Connection(*server.start())
    try:
        assert client.calculator.add(2, 3) == 5
        assert client.calculator.divide(1, 4) == 0.25
        assert client.calculator.add_slowly(2, 3, 1) == 5
        with pytest.raises(DivisionByZero, match=r"1\.0 cannot be divided"):
            client.calculator.divide(1, 0)
    finally:
        client.close()
        server.cut_off()


def test_a_server_is_replaced_under_a_client_that_follows(tmp_path: Path) -> None:
    """Two servers on the embedded registry, one of them told to stop while a client calls: not one call fails."""
    registry = f"local://{tmp_path}/cluster"

    def server(name: str) -> ManagedProcess:
        module = "examples.thrift_calculator.server"
        return ManagedProcess.python("-m", module, "--registry", registry, log=tmp_path / f"{name}.log")

    with server("first") as first, server("second") as second:
        for each in (first, second):
            each.wait_output("registered")
        client = ManagedProcess.python(
            "-m",
            "examples.thrift_calculator.client",
            "--registry",
            registry,
            "--seconds",
            "6",
            log=tmp_path / "client.log",
        )
        with client:
            first.signal(signal.SIGTERM)
            assert first.wait() == 0, first.output()
            assert client.wait() == 0, client.output()
        second.signal(signal.SIGTERM)
        assert second.wait() == 0, second.output()
    assert " 0 failed" in client.output()
    assert int(client.output().split()[0]) > 10
