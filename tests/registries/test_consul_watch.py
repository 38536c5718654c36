"""Following a service on a real Consul: through restarts, resets and outages, and closed at once."""

from __future__ import annotations

import threading
import time

import pytest

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.consul import watch as consul_watch
from registry_drain.registries.consul.watch import ConsulWatch
from tests.conftest import NewConsulAgent
from tests.registries.consul_tools import FAST, Liar, Lie, Members, instance, never, soon
from tests.support.consul_process import ConsulAgent
from tests.support.processes import eventually
from tests.support.tcp_proxy import TcpProxy


def test_a_change_arrives_by_a_blocking_query(consul_agent: ConsulAgent, unique: str) -> None:
    """One query waits at the agent, and answers when something changes: no polling in between."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        watch = members.registry(f"consul://{link.address}").watch(unique, soon())
        eventually(lambda: b"index=" in link.recorded, because="a blocking query is on its way")
        asked = link.recorded.count(b"GET ")
        never(lambda: link.recorded.count(b"GET ") > asked, 0.5)
        began = time.monotonic()
        members.registered(consul_agent.url, instance(unique))
        eventually(lambda: watch.instances == (instance(unique),), because="the watch shows it")
        assert time.monotonic() - began < 8, "polled"


def test_an_agent_that_starts_over(new_consul_agent: NewConsulAgent, unique: str) -> None:
    """The agent restarts, and its index with it: the watch starts over instead of waiting for the old index."""
    agent = new_consul_agent()
    with Members() as members:
        watch = members.registry(agent.url).watch(unique, soon())
        for number in range(30):
            agent.put(f"/v1/kv/push-the-index-{number}", number)
        agent.put("/v1/agent/service/register", {"ID": "a", "Name": unique, "Address": "192.0.2.1", "Port": 1})
        eventually(lambda: [each.id for each in watch.instances] == ["a"], because="the watch shows the first")
        agent.restart(kill=True)
        agent.put("/v1/agent/service/register", {"ID": "b", "Name": unique, "Address": "192.0.2.1", "Port": 2})
        began = time.monotonic()
        eventually(lambda: [each.id for each in watch.instances] == ["b"], because="the watch shows the second")
        assert time.monotonic() - began < 8, "waited for the old index"


def test_an_outage_leaves_the_list_as_it_was(
    consul_agent: ConsulAgent, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the registry is out of reach the list is kept, with one warning; afterwards it is current again."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        members.registered(consul_agent.url + FAST, instance(unique))
        watch = members.registry(f"consul://{link.address}?timeout_s=1").watch(unique, soon())
        assert len(watch.instances) == 1
        link.reset()
        eventually(lambda: "out of reach" in caplog.text, because="the outage is logged")
        never(lambda: len(watch.instances) != 1, 0.5)
        members.registered(consul_agent.url + FAST, instance(unique, 9091, "two"))
        never(lambda: len(watch.instances) != 1, 0.3)
        link.pass_through()
        eventually(lambda: len(watch.instances) == 2, timeout=15, because="the list is current again")
        assert caplog.text.count("out of reach") == 1


def test_a_link_that_dies_silently_is_noticed(
    consul_agent: ConsulAgent, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes any more on a black-holed link: the query ends by its own limit, and a new one gets through."""
    monkeypatch.setattr(consul_watch, "WAIT", 0.5)
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        watch = members.registry(f"consul://{link.address}?timeout_s=0.5").watch(unique, soon())
        link.black_hole()
        members.registered(consul_agent.url, instance(unique))
        never(lambda: watch.instances, 1.5)
        link.pass_through()
        eventually(lambda: len(watch.instances) == 1, timeout=10, because="the watch has reconnected")


@pytest.mark.parametrize("is_cut", [False, True], ids=["blocking", "black-holed"])
def test_close_does_not_wait_for_the_query(consul_agent: ConsulAgent, unique: str, is_cut: bool) -> None:
    """A query that waits at the agent, or for ever, is cut off: close joins the thread at once."""
    with TcpProxy(consul_agent.http_address) as link, Members() as members:
        watch = members.registry(f"consul://{link.address}").watch(unique, soon())
        assert isinstance(watch, ConsulWatch)
        eventually(lambda: b"index=" in link.recorded, because="a blocking query is on its way")
        if is_cut:
            link.black_hole()
        began = time.monotonic()
        watch.close()
        assert time.monotonic() - began < 8
        eventually(lambda: not watch._thread.is_alive(), timeout=5, because="the query is cut off")


def test_an_index_that_does_not_block_is_no_tight_loop(consul_agent: ConsulAgent, unique: str) -> None:
    """Without a usable index every query answers at once: the watch pauses in between, and still follows."""
    with Liar(consul_agent) as without_index, Members() as members:
        watch = members.registry(f"consul://{without_index.address}").watch(unique, soon())
        threading.Event().wait(1.0)
        assert len(without_index.requests) < 8
        members.registered(consul_agent.url, instance(unique))
        eventually(lambda: len(watch.instances) == 1, because="the watch polls")


def test_an_index_that_goes_backwards_starts_over(unique: str) -> None:
    """A cluster that was restored from a backup counts from lower numbers: asking on with the old one would sleep."""
    service = '[{{"Node": {{"Node": "n"}}, "Service": {{"ID": "{0}", "Address": "192.0.2.1", "Port": 1}}}}]'
    ended = threading.Event()

    def restored(_: str, path: str) -> Lie:
        if "index=50" in path:
            return 200, service.format("b").encode(), 7
        if "index=" in path:
            ended.wait(30)
            return 200, service.format("c").encode(), 8
        return 200, service.format("c" if asked else "a").encode(), 7 if asked else 50

    asked: list[tuple[str, str, str]] = []
    with Liar(None, restored) as liar, Members() as members:
        watch = members.registry(f"consul://{liar.address}").watch(unique, soon())
        asked = liar.requests
        eventually(lambda: [each.id for each in watch.instances] == ["c"], because="it started over")
        assert ["index=" in path for _, path, _ in liar.requests[:3]] == [False, True, False]
        ended.set()


def test_what_leaves_the_callers_lists(consul_agent: ConsulAgent, unique: str) -> None:
    """Critical and resting instances are not shown; an id that we would not register, and a node's address, are."""
    put = consul_agent.put
    put("/v1/agent/service/register", {"ID": "odd/id", "Name": unique, "Port": 80, "Meta": {"k": "v"}, "Tags": ["t"]})
    put(
        "/v1/agent/service/register",
        {"ID": "c", "Name": unique, "Port": 81, "Check": {"CheckID": f"c-{unique}", "TTL": "60s", "Status": "passing"}},
    )
    put("/v1/agent/service/register", {"ID": "no-port", "Name": unique})
    with Members() as members:
        watch = members.registry(consul_agent.url).watch(unique, soon())
        odd = ServiceInstance(unique, "127.0.0.1", 80, metadata={"k": "v"}, tags=("t",))
        checked = ServiceInstance(unique, "127.0.0.1", 81, id="c")
        assert watch.instances == (checked, odd)
        put(f"/v1/agent/check/fail/c-{unique}")
        eventually(lambda: watch.instances == (odd,), because="the critical one is gone")
        put(f"/v1/agent/check/pass/c-{unique}")
        eventually(lambda: watch.instances == (checked, odd), because="the passing one is back")
        put("/v1/agent/service/maintenance/c?enable=true")
        eventually(lambda: watch.instances == (odd,), because="the resting one is gone")
    for consul_id in ("odd%2Fid", "c", "no-port"):
        put(f"/v1/agent/service/deregister/{consul_id}")


def test_an_unusable_name_is_refused(consul_agent: ConsulAgent) -> None:
    """A name that Consul would read as another one is refused before anything is asked."""
    with Members() as members:
        registry = members.registry(consul_agent.url)
        for name in ("../x", "a//b", ""):
            with pytest.raises(ConfigurationError):
                registry.watch(name, soon())
            with pytest.raises(ConfigurationError):
                registry.entries(name, soon())


def test_repr_shows_the_state(consul_agent: ConsulAgent, unique: str) -> None:
    """The repr names service, registry, state and count."""
    with Members() as members:
        watch = members.registry(consul_agent.url).watch(unique, soon())
        assert repr(watch) == f"<ConsulWatch {unique} at {consul_agent.url} following instances=0>"
        watch.close()
        assert repr(watch) == f"<ConsulWatch {unique} at {consul_agent.url} closed instances=0>"
