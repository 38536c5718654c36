"""The calculator service and an admin port, restarted by hand-over.

    python -m examples.handover.server --registry local:///tmp/cluster --port 9090 --admin-port 9091

Change something in this file, and send the process SIGHUP: a new one takes both ports and the registration, says that
it is ready, and the old one finishes its requests and exits. ``echo version | nc 127.0.0.1 9091`` tells which answers.
"""

from __future__ import annotations

import argparse
import logging
import os
import socketserver
import sys

from examples.thrift_calculator.server import Calculator, new_threaded_server
from registry_drain import Handover, listening_socket, serve
from registry_drain.servers.group import ServerGroup
from registry_drain.servers.socket_server import SocketServer
from registry_drain.servers.thrift_server import ThriftServer

VERSION = "1"


class Admin(socketserver.StreamRequestHandler):
    """Answers each line with this process' version and id."""

    def handle(self) -> None:
        """Answer until the client hangs up."""
        for _line in self.rfile:
            self.wfile.write(f"version {VERSION} pid {os.getpid()}\n".encode())


def new_admin_server(host: str, port: int) -> socketserver.ThreadingTCPServer:
    """Return the admin server on a socket that is inherited, or bound here."""
    server = socketserver.ThreadingTCPServer((host, port), Admin, bind_and_activate=False)
    server.daemon_threads = True
    server.socket.close()
    server.socket = listening_socket(host, port, name="admin")
    return server


def main() -> int:
    """Serve until a signal stops the service, or SIGHUP has handed it over."""
    parser = argparse.ArgumentParser(description="The calculator service, restarted by hand-over.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--admin-port", type=int, default=9091)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")

    rpc = new_threaded_server(Calculator(), options.host, options.port)
    rpc.serverTransport.handle = listening_socket(options.host, options.port, name="rpc")
    group = ServerGroup(
        {"rpc": ThriftServer(rpc), "admin": SocketServer(new_admin_server(options.host, options.admin_port))}
    )
    report = serve(group, options.registry, service="calculator", handover=Handover())
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
