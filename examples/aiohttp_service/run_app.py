"""The same service for programs that call ``web.run_app``: the call stays, the import changes.

    python -m examples.aiohttp_service.run_app --registry local:///tmp/cluster --port 8082
    curl http://127.0.0.1:8082/hello

Stop it with SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys

from examples.aiohttp_service.server import new_app
from registry_drain.hosted.aiohttp import run_app


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="An aiohttp service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    return run_app(
        new_app(), host=options.host, port=options.port, registry=options.registry, service="hello"
    ).exit_code


if __name__ == "__main__":
    sys.exit(main())
