"""The Consul harness: life, faults, ACLs, TLS, and a cluster."""

from __future__ import annotations

import pytest

from tests.conftest import NewConsulAgent, NewConsulCluster
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tls_files import TlsFiles


def _register(agent: ConsulAgent, name: str, *, token: str | None = None) -> int:
    return agent.request("PUT", "/v1/agent/service/register", {"Name": name, "Port": 1}, token=token).status


def test_shared_agent_serves(consul_agent: ConsulAgent, unique: str) -> None:
    """A service that is registered can be read back."""
    assert _register(consul_agent, unique) == 200
    eventually(lambda: unique in consul_agent.instances(unique))
    consul_agent.put(f"/v1/agent/service/deregister/{unique}")


def test_a_frozen_agent_is_silent_and_goes_on_when_thawed(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """Frozen: connections are made and nothing is answered. Thawed: nothing is lost. Restarted: all is forgotten."""
    agent = new_consul_agent()
    assert _register(agent, unique) == 200
    agent.freeze()
    with pytest.raises(TimeoutError):
        agent.request("GET", "/v1/status/leader", timeout=0.2)
    agent.thaw()
    agent.wait_ready()
    eventually(lambda: unique in agent.instances(unique))
    agent.restart()
    assert not agent.instances(unique)


def test_an_agent_that_keeps_data_remembers_after_a_kill(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """Killed, it refuses connections; started again, on the same port, it knows its services."""
    agent = new_consul_agent(keeps_data=True)
    assert _register(agent, unique) == 200
    agent.kill()
    with pytest.raises(ConnectionRefusedError):
        agent.request("GET", "/v1/status/leader")
    agent.start()
    eventually(lambda: unique in agent.instances(unique))


def test_acl_denies_by_default(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """Without a token nothing is allowed; with one, what its policy says; revoked, nothing again."""
    agent = new_consul_agent(acl=True)
    assert _register(agent, unique, token="") == 403
    token = agent.create_token(f'service "{unique}" {{ policy = "write" }}')
    assert _register(agent, unique, token=token) == 200
    assert _register(agent, "another", token=token) == 403
    agent.revoke_token(token)
    eventually(lambda: _register(agent, unique, token=token) == 403)


def test_tls_wants_a_client_certificate(new_consul_agent: NewConsulAgent, tls_files: TlsFiles) -> None:
    """HTTPS serves whoever has a certificate of the authority."""
    agent = new_consul_agent(tls=tls_files)
    assert agent.url.startswith("consul+https://127.0.0.1:")
    assert agent.request_tls("GET", "/v1/status/leader").status == 200


def test_cluster_sees_services_of_its_agents(new_consul_cluster: NewConsulCluster, unique: str) -> None:
    """What a client agent registers is in the server's catalog, and stays there when the agent is killed."""
    cluster = new_consul_cluster(agents=2)
    first, second = cluster.agents
    assert _register(first, unique) == 200
    for each in (cluster.server, second):
        eventually(lambda each=each: unique in each.instances(unique))  # type: ignore[misc]
    first.kill()
    eventually(lambda: not second.instances(unique, passing=True), because="the failure is noticed")
    assert unique in second.instances(unique)
