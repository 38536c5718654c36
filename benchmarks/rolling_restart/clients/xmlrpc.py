"""XML-RPC over the HTTP client of the harness: calls the method ``echo``."""

from __future__ import annotations

import xmlrpc.client

from benchmarks.rolling_restart.clients import http


class Client(http.Client):
    """One connection."""

    path = "/RPC2"
    content_type = "text/xml"

    def encode(self, payload: bytes) -> bytes:
        """Return a call."""
        return xmlrpc.client.dumps((payload,), "echo").encode()

    def decode(self, body: bytes) -> bytes:
        """Return the call's result."""
        ((result,), _) = xmlrpc.client.loads(body)
        assert isinstance(result, xmlrpc.client.Binary)
        return result.data
