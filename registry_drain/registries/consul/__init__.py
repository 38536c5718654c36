"""Consul as a registry: ``consul://HOST:PORT``, ``consul+https://HOST:PORT``; see docs/consul.md for its options.

- ``registry``: opens, lists; joins the rest
- ``http``: the hardened client, on ``connection`` (deadlines, aborting) and ``native`` (the library's own API)
- ``token``: where it comes from; ``catalog``: reading, and what an empty list proves; ``listed``: what was read
- ``registration``: one's own instance, with ``own`` (names, payload) and ``heartbeat``
- ``removal``: other people's, one or many; ``rotation``: maintenance mode; both with ``look`` (what is listed now),
  ``agents`` (whose it is) and ``managed`` (who puts it back)
- ``watch``: following a service; ``retry``: repeating what a retry can help
"""

from registry_drain.registries.consul.registry import OPTIONS, ConsulRegistry, open_consul

__all__ = ["OPTIONS", "ConsulRegistry", "open_consul"]
