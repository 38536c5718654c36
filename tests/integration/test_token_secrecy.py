"""A Consul token, all through the life of a service: it travels in one header, and stands nowhere else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import NewConsulAgent
from tests.integration.fleet import ServiceProcess, ended
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy


@pytest.mark.parametrize("ends", ["confirmed", "unconfirmed"])
def test_the_token_stands_in_no_url_log_exception_report_or_argv(
    new_consul_agent: NewConsulAgent, tcp_proxy: Callable[[str], TcpProxy], tmp_path: Path, unique: str, ends: str
) -> None:
    """An ACL agent behind a recording link, every library's debug log on, and a stop that works or fails half way."""
    agent = new_consul_agent(acl=True)
    token = agent.create_token(f'service "{unique}" {{ policy = "write" }} node_prefix "" {{ policy = "read" }}')
    proxy = tcp_proxy(agent.http_address)
    environment = {**os.environ, "CONSUL_HTTP_TOKEN": token}
    service = ServiceProcess(f"consul://{proxy.address}?ttl_s=3", unique, tmp_path / "log", "--debug", env=environment)
    with ended(service):
        eventually(lambda: agent.instances(unique, passing=True), because="it is registered with its token")
        if ends == "unconfirmed":
            proxy.reset()
        argv = Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
        service.process.signal(signal.SIGTERM)
        service.process.wait(timeout=60)
    assert service.report()["removals"][0]["outcome"] == ends
    assert token not in service.process.output()  # the logs, the events and the report
    assert token.encode() not in argv
    lines = [line for line in proxy.recorded.split(b"\r\n") if token.encode() in line]
    assert lines
    assert {line for line in lines if line != f"X-Consul-Token: {token}".encode()} == set()
