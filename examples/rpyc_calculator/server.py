"""The calculator service: an RPyC server as ever, and one call around it.

    python -m examples.rpyc_calculator.server --registry local:///tmp/cluster

Start a few (``--port 0`` takes a free port), start the client, and send any of them SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import sys

import rpyc
from rpyc.utils.server import ThreadedServer

from registry_drain import serve
from registry_drain.servers.rpyc_server import RpycServer


class CalculatorService(rpyc.Service):  # type: ignore[misc]  # rpyc is not annotated
    """It knows nothing of registries or of being stopped."""

    def exposed_add(self, a: int, b: int) -> int:
        """Add."""
        return a + b


def main() -> int:
    """Serve until a signal stops the service; the exit status says whether the stop went as it should."""
    parser = argparse.ArgumentParser(description="The calculator service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    server = ThreadedServer(CalculatorService, hostname=options.host, port=options.port)
    return serve(RpycServer(server), options.registry, service="rpyc-calculator").exit_code


if __name__ == "__main__":
    sys.exit(main())
