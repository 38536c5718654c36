"""Drains ``http.server``, and what is built on it: ``xmlrpc.server``, ``wsgiref``, JSON-RPC services, Werkzeug's.

``server`` is the adapter, ``handler`` what it puts in front of the user's handler class, ``tracked_file`` what handlers
read from.
"""

from registry_drain.servers.http_server.server import HttpServer

__all__ = ["HttpServer"]
