"""What the tests of ZooKeeper's security share: identities in files, and nodes under access lists."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient
from kazoo.security import ACL, Id, make_digest_acl_credential

from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.registries.url import parse_registry_url
from registry_drain.registries.zookeeper import ZooKeeperRegistry, open_zookeeper
from registry_drain.registries.zookeeper.access_list import PERMISSIONS
from tests.registries.zookeeper_bench import Stage
from tests.support.processes import READY_TIMEOUT

USERS = {"deployer": "s3cr3t-w0rd", "rival": "an0ther-w0rd"}
"""Of the server's SASL; the same are used as digests."""
ADMIN = ("admin", "4dm1n-w0rd")
"""A digest that the tests look with, beside every access list they plant."""


def digest_acl(user: str, password: str, letters: str) -> ACL:
    """Return what grants ``letters`` of ``cdrwa`` to a digest."""
    permissions = sum(PERMISSIONS[letter] for letter in letters)
    return ACL(permissions, Id("digest", make_digest_acl_credential(user, password)))


class Identities:
    """The files that a URL names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def file(self, scheme: str, user: str, password: str = "") -> Path:
        """Return an auth_file."""
        path = self.directory / f"{scheme}-{user}-{'other' if password else 'right'}"
        path.write_text(f"{scheme}:{user}:{password or USERS[user]}\n", encoding="utf-8")
        return path

    def option(self, scheme: str, user: str, password: str = "") -> str:
        """Return an option of a URL."""
        return f"&auth_file={self.file(scheme, user, password)}"


class GuardedStage(Stage):
    """A stage whose nodes have access lists, and eyes that may see them all."""

    @contextlib.contextmanager
    def eyes(self) -> Iterator[Any]:
        """Give an independent client that is the administrator."""
        client = KazooClient(hosts=self.server.hosts, auth_data=[("digest", ":".join(ADMIN))])
        client.start(timeout=READY_TIMEOUT)
        try:
            yield client
        finally:
            client.stop()
            client.close()

    def plant(self, rights: Mapping[str, str], nodes: Mapping[str, bytes]) -> None:
        """Create ``nodes``, where deployer has ``rights``: letters by path, or by ``*``; the administrator has all."""
        with self.eyes() as client:
            for path, data in nodes.items():
                acls = [digest_acl(*ADMIN, "cdrwa")]
                if letters := rights.get(path, rights.get("*", "")):
                    acls.append(digest_acl("deployer", USERS["deployer"], letters))
                client.create(path, data, acl=acls)

    def tls_registry(self, options: str = "", *, hosts: str = "") -> ZooKeeperRegistry:
        """Return a registry through the TLS port."""
        url = f"zookeeper+tls://{hosts or self.server.tls_hosts}{self.base}?session_timeout_s=4{options}"
        registry = open_zookeeper(parse_registry_url(url), SYSTEM_CLOCK)
        self._exits.callback(registry.close)
        return registry

    def acl_of(self, path: str) -> dict[str, int]:
        """Return permissions by ``scheme:user``."""
        with self.eyes() as client:
            acls, _ = client.get_acls(path)
        return {f"{each.id.scheme}:{each.id.id.partition(':')[0]}": each.perms for each in acls}
