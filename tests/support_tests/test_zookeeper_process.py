"""The ZooKeeper harness: life, faults, and sessions that expire."""

from __future__ import annotations

import pytest

from tests.conftest import NewZooKeeper
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer


def test_shared_server_serves(zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """What one session creates, another one sees; and four-letter words are answered."""
    with zookeeper_server.client() as writer, zookeeper_server.client() as reader:
        writer.create(f"/{unique}", b"data")
        reader.sync("/")
        assert reader.get(f"/{unique}")[0] == b"data"
        assert {writer.client_id[0], reader.client_id[0]} <= zookeeper_server.session_ids()
        assert "127.0.0.1" in zookeeper_server.four_letter_word("cons")


def test_a_frozen_server_is_silent_and_data_survives_a_kill(new_zookeeper: NewZooKeeper, unique: str) -> None:
    """Frozen: connections are made and nothing is answered. Killed and started: same port, same data."""
    server = new_zookeeper()
    with server.client() as client:
        client.create(f"/{unique}")
    server.freeze()
    with pytest.raises(TimeoutError):
        server.four_letter_word("ruok", timeout=0.2)
    server.thaw()
    assert server.four_letter_word("ruok") == "imok"
    server.restart(kill=True)
    with server.client() as client:
        assert client.exists(f"/{unique}")


def test_an_expired_session_takes_its_ephemeral_nodes_along(zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """The node is gone, and the owner, which reconnects, has a new session."""
    with zookeeper_server.client() as owner, zookeeper_server.client() as reader:
        owner.create(f"/{unique}", ephemeral=True)
        session = owner.client_id[0]
        zookeeper_server.expire_session(*owner.client_id)
        reader.sync("/")
        assert not reader.exists(f"/{unique}")
        eventually(lambda: owner.connected and owner.client_id[0] != session, because="the owner is back")
