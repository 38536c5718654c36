"""ZooKeeper as a registry: ``zookeeper://H1:P1,H2:P2/base/path``; see docs/zookeeper.md for its options.

- ``registry``: opens, lists; joins the rest
- ``session``: bounds every call and ends sessions for certain, on ``client``: all that is known of kazoo's insides
- ``credentials``, ``access_list``, ``tls``: who we are, and who may do what with what we create
- ``handler``, ``refusal``, ``session_errors``: why there is no connection, no permission, no answer
- ``registration``: one's own instance: the thread that keeps it, its node and who may hold that, removing it
- ``layouts``: how nodes are written; ``listing``: reading them, ``tree_walk``: in a whole tree; ``watch``: following
- ``removal``: somebody else's node, ``bulk_removal``: many; ``rotation``: out of it and back, ``dubbo_rules``: Dubbo's
- ``node_stat``: what a stat tells; ``session_client``: who holds a session
"""

from registry_drain.registries.zookeeper.registry import DEFAULT_BASE, ZooKeeperRegistry, open_zookeeper
from registry_drain.registries.zookeeper.settings import DEFAULT_PORT

__all__ = ["DEFAULT_BASE", "DEFAULT_PORT", "ZooKeeperRegistry", "open_zookeeper"]
