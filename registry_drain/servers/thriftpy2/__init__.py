"""Drains thriftpy2's servers: ``threaded`` those that block, ``aio`` the asyncio one.

``aio_stream`` is what the latter reads from, ``boundaries`` what they share: where a message ends and the next begins.
"""

from registry_drain.errors import MissingExtraError

try:
    from registry_drain.servers.thriftpy2.aio import Thriftpy2AioServer
    from registry_drain.servers.thriftpy2.threaded import Thriftpy2Server
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "thriftpy2":
        raise
    raise MissingExtraError("registry_drain.servers.thriftpy2", "thriftpy2", "thriftpy2") from error

__all__ = ["Thriftpy2AioServer", "Thriftpy2Server"]
