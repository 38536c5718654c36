"""ZooKeeper as a registry: ``zookeeper://H1:P1,H2:P2/base/path``; see docs/zookeeper.md for its options.

- ``registry``: opens, lists; joins the rest
- ``session``: bounds every call and ends sessions for certain, on ``client``: all that is known of kazoo's insides
- ``credentials``, ``access_list``, ``tls``: who we are, what others may do; ``handler`` and ``refusal`` say why not
- ``registration``: one's own instance; ``node`` is its node and says who may hold it
- ``removal``: somebody else's; ``watch``: following a service; ``layouts``: how nodes are written
"""

from registry_drain.registries.zookeeper.registry import DEFAULT_BASE, ZooKeeperRegistry, open_zookeeper
from registry_drain.registries.zookeeper.settings import DEFAULT_PORT

__all__ = ["DEFAULT_BASE", "DEFAULT_PORT", "ZooKeeperRegistry", "open_zookeeper"]
