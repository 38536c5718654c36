"""The Consul library's own API on our transport: the hook of python-consul and of its fork py-consul.

Both take a subclass of ``base.HTTPClient`` as their transport, and compose their API in ``base.Consul``. The two differ
in where the classes of the API stand, and in whether they pass headers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import consul
from consul import base

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryDataError

if TYPE_CHECKING:
    from registry_drain.registries.consul.http import ConsulClient

_BLOCKING_SLACK = 1 / 16
"""Consul adds up to a sixteenth of ``wait`` as jitter: developer.hashicorp.com/consul/api-docs/features/blocking."""


class Transport(base.HTTPClient):  # type: ignore[misc]  # the library has no annotations
    """The library's hook: one deadline's view of a :class:`ConsulClient`."""

    def __init__(self, client: ConsulClient, deadline: Deadline) -> None:
        # Without the base's __init__: it would only compose an address, and that without brackets for IPv6.
        self._client = client
        self._deadline = deadline
        self.base_uri = ""

    def _send(self, method: str, callback: Callable[[Any], Any], path: str, params: Any, data: Any = None) -> Any:
        # A list of pairs from python-consul and py-consul, a dict from older callers. The token is ours to send.
        pairs = params.items() if isinstance(params, dict) else params or ()
        query = [(name, value) for name, value in pairs if name != "token"]
        timeout = self._client.address.timeout
        values = dict(query)
        if "index" in values:
            timeout += float(str(values.get("wait", "300s")).removesuffix("s")) * (1 + _BLOCKING_SLACK)
        body = data.encode() if isinstance(data, str) else data
        status, headers, text = self._client.send(
            method, self.uri(path, query), body or None, self._deadline, timeout, frozenset()
        )
        # The libraries read this header unconditionally in places where Consul does not send it.
        safe_headers = {"X-Consul-Index": "0", **_canonical(headers)}
        try:
            return callback(base.Response(status, safe_headers, text))
        except (consul.ConsulException, ValueError, LookupError, TypeError) as error:
            message = f"{self._client.address.url}: {method} {path}: the answer cannot be read: {error!r}"
            raise RegistryDataError(message) from error

    def get(
        self, callback: Callable[[Any], Any], path: str, params: Any = None, headers: Any = None, raw: Any = None
    ) -> Any:
        """GET. ``headers`` and ``raw`` are py-consul's: its headers hold the token, which is sent anyway."""
        del headers, raw
        return self._send("GET", callback, path, params)

    def put(
        self, callback: Callable[[Any], Any], path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        """PUT; see ``get``."""
        del headers
        return self._send("PUT", callback, path, params, data)

    def delete(
        self, callback: Callable[[Any], Any], path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        """DELETE; see ``get``."""
        del headers
        return self._send("DELETE", callback, path, params, data)

    def post(
        self, callback: Callable[[Any], Any], path: str, params: Any = None, data: Any = "", headers: Any = None
    ) -> Any:
        """POST; see ``get``."""
        del headers
        return self._send("POST", callback, path, params, data)

    def close(self) -> None:
        """Do nothing: the connections are the client's."""


class NativeAPI(base.Consul):  # type: ignore[misc]  # the library has no annotations
    """The library's API over our transport, with the nouns that the backend uses: ``agent`` and ``health``."""

    # python-consul nests these classes in Consul, py-consul has them in modules of their own.
    _AGENT: ClassVar[Any] = getattr(base.Consul, "Agent", None) or base.Agent
    _HEALTH: ClassVar[Any] = getattr(base.Consul, "Health", None) or base.Health

    def __init__(self, client: ConsulClient, deadline: Deadline) -> None:
        # Without the base's __init__, which lets the environment override its arguments.
        self.http = Transport(client, deadline)
        self.token = None
        self.scheme = client.address.scheme
        self.dc = None  # sent by the client, with every request
        self.consistency = "default"
        self.agent: Any = self._AGENT(self)
        self.health: Any = self._HEALTH(self)


def _canonical(headers: Mapping[str, str]) -> dict[str, str]:
    return {"X-Consul-Index" if name.lower() == "x-consul-index" else name: value for name, value in headers.items()}
