"""Drains aiohttp.

``server`` is the adapter, which runs the application for you; ``tracking`` is what an application gets, whoever runs
it; ``running`` are the steps of the stop; ``binding`` opens the sockets.
"""

from registry_drain.errors import MissingExtraError

try:
    from registry_drain.servers.aiohttp_server.server import AiohttpServer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "aiohttp":
        raise
    raise MissingExtraError("registry_drain.servers.aiohttp_server", "aiohttp", "aiohttp") from error

__all__ = ["AiohttpServer"]
