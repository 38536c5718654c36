"""hypercorn: its own command line, with the one worker process that is its default, or its adapter."""

from __future__ import annotations

from hypercorn.config import Config

from benchmarks.rolling_restart import asgi_subject, subject
from registry_drain import Service
from registry_drain.servers.hypercorn_server import HypercornServer

CLIENT = "http"
IGNORING_LIMIT = 0.0


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    bind = f"{subject.HOST}:{given.port}"
    if not given.is_drained:
        # It has no option for factories, but evaluates what stands behind the colon.
        asgi_subject.become(["hypercorn", "--bind", bind, f"{asgi_subject.factory(given)}()"], given)
    config = Config()
    config.bind = [bind]
    service = Service(
        HypercornServer(asgi_subject.echo_app(), config), given.registry, service=given.service, budget=subject.BUDGET
    )
    subject.say_ready_when_started(service)
    service.run()


if __name__ == "__main__":
    main()
