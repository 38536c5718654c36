"""Drains hypercorn: HTTP/1.1, HTTP/2 and WebSockets, with asyncio.

``server`` is the adapter, which runs hypercorn for you; ``running`` is the server while it runs, and its stop;
``connection`` knows hypercorn's connections and says goodbye on them.

For ``hypercorn --workers 0``, where the command line is hypercorn's own, see :mod:`registry_drain.hosted`.
"""

from registry_drain.errors import MissingExtraError

try:
    from registry_drain.servers.hypercorn_server.server import HypercornServer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "hypercorn":
        raise
    raise MissingExtraError("registry_drain.servers.hypercorn_server", "hypercorn", "hypercorn") from error

__all__ = ["HypercornServer"]
