"""We run uvicorn."""

from __future__ import annotations

import sys

import uvicorn

from examples.asgi_service.app import PORT, REGISTRY, app
from registry_drain import serve
from registry_drain.servers.uvicorn_server import UvicornServer

if __name__ == "__main__":
    report = serve(UvicornServer(uvicorn.Config(app, host="127.0.0.1", port=PORT)), REGISTRY, service="asgi-example")
    sys.exit(report.exit_code)
