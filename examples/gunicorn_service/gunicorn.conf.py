# ruff: noqa: N999 -- the name that gunicorn looks for
"""Run it, from the root of the repository::

    WEB_REGISTRY=local:///tmp/web gunicorn -c examples/gunicorn_service/gunicorn.conf.py \
        examples.gunicorn_service.app:application
    registry-drain list local:///tmp/web
    curl http://127.0.0.1:8080/
    kill -TERM $(cat /tmp/web.pid)

Watch the log: the instance leaves the registry, serves on, and only then stops accepting.
"""

import logging
import os

from registry_drain import StopBudget
from registry_drain.hosted.gunicorn import drain

logging.basicConfig(level=logging.INFO)

bind = os.environ.get("WEB_BIND", "127.0.0.1:8080")
workers = 2
worker_class = "gthread"
threads = 8
pidfile = os.environ.get("WEB_PID", "/tmp/web.pid")  # noqa: S108 -- an example
graceful_timeout = 30

# The last line: it chains the hooks that stand above it.
drain(
    globals(),
    registry=os.environ.get("WEB_REGISTRY", "consul://127.0.0.1:8500"),
    service="web",
    budget=StopBudget(grace_period=30),
    health_check_paths=["/healthz"],
    readiness_path="/ready",
)
