"""For a server's own command line: the application, drained."""

from __future__ import annotations

from examples.asgi_service.app import PORT, REGISTRY, app
from registry_drain.hosted import drained

service = drained(app, REGISTRY, service="asgi-example", port=PORT)
