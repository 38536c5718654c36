"""uvicorn in one process: its own command line, or its adapter."""

from __future__ import annotations

import uvicorn

from benchmarks.rolling_restart import asgi_subject, subject
from registry_drain import Service
from registry_drain.servers.uvicorn_server import UvicornServer

CLIENT = "http"
IGNORING_LIMIT = 0.0


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    if not given.is_drained:
        where = ["--host", subject.HOST, "--port", str(given.port), "--log-level", "warning"]
        asgi_subject.become(["uvicorn", "--factory", asgi_subject.factory(given), *where], given)
    config = uvicorn.Config(asgi_subject.echo_app(), host=subject.HOST, port=given.port, log_level="warning")
    service = Service(UvicornServer(config), given.registry, service=given.service, budget=subject.BUDGET)
    subject.say_ready_when_started(service)
    service.run()


if __name__ == "__main__":
    main()
