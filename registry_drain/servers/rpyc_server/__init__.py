"""Drains RPyC servers. ``server`` is the adapter, ``protocol`` what tells it of requests and messages."""

from registry_drain.errors import MissingExtraError

try:
    import rpyc  # noqa: F401 - here, so that a missing one is named
except ImportError as error:
    raise MissingExtraError("RpycServer", "rpyc", "rpyc") from error

from registry_drain.servers.rpyc_server.server import RpycServer

__all__ = ["RpycServer"]
