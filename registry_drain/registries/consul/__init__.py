"""Consul as a registry: ``consul://HOST:PORT``, ``consul+https://HOST:PORT``; see docs/consul.md for its options.

- ``registry``: opens, lists; joins the rest; ``settings``: what a URL may say
- ``http``: the hardened client, on ``connection`` (deadlines, aborting) and ``native`` (the library's own API)
- ``token``: where it comes from; ``catalog``: reading, and what an empty list proves; ``listed``: what was read
- ``registration``: one's own instance: registering, renewing, removing, handing over
- ``removal``: other people's, one or many; ``rotation``: maintenance mode; both with ``look`` (what is listed now),
  ``agents`` (whose it is) and ``managed`` (who puts it back)
- ``watch``: following a service
"""

import importlib.util

if importlib.util.find_spec("consul") is None:
    # The library is loaded when it is first used, which a listing never does. That it is missing is told at once.
    raise ModuleNotFoundError("No module named 'consul'", name="consul")

from registry_drain.registries.consul.registry import ConsulRegistry, open_consul
from registry_drain.registries.consul.settings import OPTIONS

__all__ = ["OPTIONS", "ConsulRegistry", "open_consul"]
