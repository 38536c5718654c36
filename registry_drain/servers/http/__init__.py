"""HTTP, whatever server speaks it: middlewares that count requests, send clients away politely and say no at the end.

``policy`` decides what becomes of a request, ``wsgi`` and ``asgi`` are the middlewares, ``websocket`` is one WebSocket
of the latter. No server library is imported here.
"""

from registry_drain.servers.http.asgi import ASGIMiddleware
from registry_drain.servers.http.policy import RequestPolicy, Verdict
from registry_drain.servers.http.wsgi import WSGIMiddleware

__all__ = ["ASGIMiddleware", "RequestPolicy", "Verdict", "WSGIMiddleware"]
