"""Drains Apache Thrift's servers. ``server`` is the adapter, ``messages`` its part on the path of every call."""

from registry_drain.errors import MissingExtraError

try:
    from registry_drain.servers.thrift_server.server import ThriftServer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "thrift":
        raise
    raise MissingExtraError("registry_drain.servers.thrift_server", "thrift", "thrift") from error

__all__ = ["ThriftServer"]
