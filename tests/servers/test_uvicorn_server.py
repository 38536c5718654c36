"""The uvicorn adapter: the server contract, with both of uvicorn's HTTP parsers, and what is uvicorn's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import uvicorn

from benchmarks.rolling_restart.clients.http import Client
from registry_drain.servers.base import DrainableServer
from registry_drain.servers.uvicorn_server import UvicornServer
from registry_drain.testing.server_contract import ServerContract
from tests.servers.asgi_echo import echo_app


class TestUvicornH11(ServerContract):
    """With h11, which is always there."""

    request_name = "POST /"
    patience = 20.0
    http = "h11"

    def new_server(self, serve: Callable[[bytes], bytes]) -> DrainableServer:
        """Return the adapter around the echo."""
        config = uvicorn.Config(
            echo_app(serve), host="127.0.0.1", port=0, http=self.http, log_config=None, access_log=False
        )
        return UvicornServer(config)

    def connect(self, address: tuple[str, int]) -> Client:
        """Return a persistent HTTP connection."""
        return Client(address)


@pytest.mark.skipif(importlib.util.find_spec("httptools") is None, reason="httptools is not installed")
class TestUvicornHttptools(TestUvicornH11):
    """With httptools."""

    http = "httptools"
