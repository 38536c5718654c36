"""Drains Apache Thrift's servers, an adapter for each way to serve.

``server`` is the adapter of those with threads; ``nonblocking`` that of ``TNonblockingServer``, with
``nonblocking_connection`` behind it; ``processes`` that of those that fork, with ``supervisor``, ``forking``, ``pool``,
``child``, ``controls`` and ``shared_table`` behind it. ``tracking`` is what they share, in a child with
``shared_tracking``; ``messages`` its part on the path of every call, ``tls`` and ``transport`` the sockets.
"""

from registry_drain.errors import MissingExtraError

try:
    from registry_drain.servers.thrift_server.nonblocking import ThriftNonblockingServer
    from registry_drain.servers.thrift_server.processes import ThriftProcessServer
    from registry_drain.servers.thrift_server.server import ThriftServer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "thrift":
        raise
    raise MissingExtraError("registry_drain.servers.thrift_server", "thrift", "thrift") from error

__all__ = ["ThriftNonblockingServer", "ThriftProcessServer", "ThriftServer"]
