"""The registry contract against a real ZooKeeper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import Registration, Registry
from registry_drain.registries.url import open_registry
from registry_drain.registries.zookeeper.registration import ZooKeeperRegistration
from registry_drain.testing.registry_contract import RegistryContract
from tests.registries.zookeeper_owner import start_owner
from tests.support.zookeeper_process import ZooKeeperServer


class TestZooKeeperContract(RegistryContract):
    """Every promise. ZooKeeper's paths take no characters beyond U+FFFF, so one odd id is another."""

    odd_ids: ClassVar[tuple[str, ...]] = (
        *(each for each in RegistryContract.odd_ids if all(ord(letter) < 0x10000 for letter in each)),
        "grüße-你好",
    )
    expiry_seconds = 40.0

    @pytest.fixture(autouse=True)
    def _server(self, zookeeper_server: ZooKeeperServer, unique: str, tmp_path: Path) -> None:
        self._url = f"{zookeeper_server.url}/{unique}/deep?session_timeout_s="
        self._directory = tmp_path
        self._server_process = zookeeper_server

    def new_registry(self) -> Registry:
        """Return one more client of the shared server."""
        return open_registry(f"{self._url}10")

    def start_doomed_owner(self, instance: ServiceInstance) -> Callable[[], None]:
        """Register from a subprocess, with a session whose end can be waited for; SIGKILL it."""
        owner = start_owner(f"{self._url}4", instance, self._directory)

        def kill() -> None:
            owner.kill()

        return kill

    def lose(self, registration: Registration) -> None:
        """Expire its session."""
        assert isinstance(registration, ZooKeeperRegistration)
        key = registration._node.sessions[-1]._state.key
        assert key
        self._server_process.expire_session(key.id, key.password)
