"""We run hypercorn, in the application's own event loop."""

from __future__ import annotations

import asyncio
import sys

from hypercorn.config import Config

from examples.asgi_service.app import PORT, REGISTRY, app
from registry_drain import serve_async
from registry_drain.servers.hypercorn_server import HypercornServer

if __name__ == "__main__":
    config = Config()
    config.bind = [f"127.0.0.1:{PORT}"]
    report = asyncio.run(serve_async(HypercornServer(app, config), REGISTRY, service="asgi-example"))
    sys.exit(report.exit_code)
