"""Drains uvicorn.

``server`` is the adapter, which runs uvicorn for you; ``running`` stops a uvicorn server that runs, whoever runs it;
``connection`` knows uvicorn's connections, and ``request`` its requests; ``binding`` opens the sockets.

For ``uvicorn app:app`` and ``uvicorn --workers``, where the command line is uvicorn's own, see
:mod:`registry_drain.hosted`.
"""

from registry_drain.errors import MissingExtraError

try:
    from registry_drain.servers.uvicorn_server.server import UvicornServer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "uvicorn":
        raise
    raise MissingExtraError("registry_drain.servers.uvicorn_server", "uvicorn", "uvicorn") from error

__all__ = ["UvicornServer"]
