"""What a demo leaves in a registry of somebody else's, and how it is taken away again.

Instances deregister; those that were killed are removed here. ZooKeeper also keeps the empty folder of a service, which
no protocol of ours takes away, because a real service needs it again.
"""

from __future__ import annotations

import contextlib

from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryDrainError
from registry_drain.instance import format_endpoint
from registry_drain.registries.base import Registry
from registry_drain.registries.url import parse_registry_url

_TIMEOUT = 5.0


def sweep(registry: Registry, service: str, clock: Clock) -> None:
    """Remove what is still listed of ``service``, and its folder. Tries once, for some seconds; raises nothing."""
    deadline = Deadline.after(_TIMEOUT, clock)
    with contextlib.suppress(RegistryDrainError):
        for entry in registry.entries(service, deadline):
            with contextlib.suppress(RegistryDrainError):
                registry.remove(entry, deadline, force=True)
    if parse_registry_url(registry.url).scheme == "zookeeper":
        _remove_folder(registry.url, service)


def _remove_folder(registry_url: str, service: str) -> None:
    from kazoo.client import KazooClient
    from kazoo.exceptions import KazooException

    from registry_drain.registries.zookeeper import DEFAULT_BASE, DEFAULT_PORT

    url = parse_registry_url(registry_url)
    base = url.path.rstrip("/") or DEFAULT_BASE
    client = KazooClient(hosts=",".join(format_endpoint(host, port or DEFAULT_PORT) for host, port in url.hosts))
    try:
        client.start(timeout=_TIMEOUT)
        client.delete(f"{base}/{service}")
    except (KazooException, client.handler.timeout_exception):
        pass  # an access list of theirs, or a server that has just died: nothing to be done about it
    finally:
        client.stop()
        client.close()
