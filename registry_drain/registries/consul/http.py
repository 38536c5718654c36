"""The hardened HTTP client under the Consul backend: python-consul (or py-consul, its fork), made fit for a stop.

Theory of operation: both libraries take their transport from a subclass of ``consul.base.HTTPClient``, which is the
documented hook. :class:`ConsulClient` owns the connections; :meth:`ConsulClient.native` hands out the library's own API
and :meth:`ConsulClient.call` makes the calls that the library gets wrong or does not know, both through one transport
that is bound to a deadline. What the plain libraries do, and this does not:

- put the token into the query string, or leave it out (python-consul): it travels as ``X-Consul-Token``, on every call;
- let ``CONSUL_HTTP_ADDR``, ``CONSUL_HTTP_SSL*``, ``HTTP_PROXY``, ``REQUESTS_CA_BUNDLE`` or ``~/.netrc`` change where a
  request goes: ``base.Consul.__init__`` is never called, and neither is requests, which looks at the environment, keeps
  cookies and follows redirects. The layer below it does none of that, see :mod:`..consul.connection`;
- wait without limit: connecting, every read and the whole answer end by the deadline;
- follow redirects: Consul redirects ids that it normalises into other ids;
- leak exceptions of the libraries below: they are translated here, once.

Rules: a client belongs to one owner (a registration's writes, a watch, ...), because :meth:`ConsulClient.abort` cuts
off whatever its threads wait for, for good.

One limit: a host *name* is looked up by the system's resolver, which takes no deadline. Consul agents are addressed by
IP (usually 127.0.0.1), where no look-up happens.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from registry_drain.clock import Deadline
from registry_drain.errors import (
    PermissionRefusedError,
    RegistryDataError,
    RegistryError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from registry_drain.instance import format_endpoint
from registry_drain.registries.consul.connection import Connections, Peer
from registry_drain.registries.consul.token import TokenSource

if TYPE_CHECKING:
    from registry_drain.registries.consul.native import NativeAPI

_HEADERS = {"User-Agent": "registry-drain", "Accept": "application/json"}
_UNKNOWN_ID = re.compile(r"^(Unknown (service|check)\b|CheckID .* does not have associated TTL)")
_REFUSED = re.compile(r"Permission denied|ACL not found", re.IGNORECASE)
_MAX_BODY_IN_MESSAGE = 200
# X509_V_ERR_… of OpenSSL's x509_vfy.h: not yet valid, has expired; host name and IP address mismatch.
_OUT_OF_DATE, _OTHER_HOST = frozenset({9, 10}), frozenset({62, 64})


@dataclass(frozen=True, slots=True)
class ConsulAddress:
    """Where an agent is, and how to talk to it. Holds no token: that is the source's, asked for at each call.

    Attributes:
        url: the registry's URL, for messages.
        scheme: ``http`` or ``https``.
        host: name or IP, without brackets.
        port: of the HTTP API.
        verify: a file of CA certificates, or True for the well-known ones.
        cert: client certificate and key.
        timeout: seconds that one request may take, inside its deadline.
        tokens: where the token comes from.
        dc: the data centre whose catalog is read; empty for the agent's own.
        ns: the namespace of Consul Enterprise; empty for the token's own.
        partition: the admin partition of Consul Enterprise; empty for the agent's own.
    """

    url: str
    scheme: str
    host: str
    port: int
    tokens: TokenSource
    verify: str | bool = True
    cert: tuple[str, str] | None = None
    timeout: float = 5.0
    dc: str = ""
    ns: str = ""
    partition: str = ""

    @property
    def scope(self) -> dict[str, str]:
        """What every request is limited to: the parameters that are set."""
        given = {"dc": self.dc, "ns": self.ns, "partition": self.partition}
        return {name: value for name, value in given.items() if value}

    def at(self, host: str, port: int | None = None) -> ConsulAddress:
        """Return the same for another agent of the cluster; without ``port``, on the same one."""
        where = format_endpoint(host, port) if port else host
        return replace(self, host=host, port=port or self.port, url=f"{self.url} (agent at {where})")


@dataclass(frozen=True, slots=True)
class Answer:
    """What Consul said: ``status`` is 2xx, or 404 for an id that this agent does not know."""

    status: int
    data: Any = field(repr=False)


class ConsulClient:
    """The connections of one owner to one agent. Thread-safe; connects when first used."""

    def __init__(self, address: ConsulAddress) -> None:
        """Make a client; sends nothing."""
        self.address = address
        self._connections = Connections(
            Peer(address.host, address.port, address.scheme == "https", address.verify, address.cert)
        )

    def __repr__(self) -> str:
        """Show where it connects to; never the token."""
        return f"<ConsulClient {self.address.url}{' aborted' if self._connections.is_aborted else ''}>"

    def native(self, deadline: Deadline) -> NativeAPI:
        """Return the library's own API; its calls end by ``deadline`` and raise errors of our tree."""
        # Here, because the library brings requests along, which takes longer to load than a command has to run.
        from registry_drain.registries.consul.native import NativeAPI

        return NativeAPI(self, deadline)

    def call(
        self,
        method: str,
        *segments: str,
        deadline: Deadline,
        params: Mapping[str, str] | None = None,
        body: object = None,
        accept: frozenset[int] = frozenset(),
    ) -> Answer:
        """Make a raw call to ``/v1/<segments>``, each segment quoted, and return its JSON.

        Args:
            method: of HTTP.
            *segments: of the path, unquoted.
            deadline: bounds it, together with the address' ``timeout``.
            params: the query.
            body: sent as JSON, unless None.
            accept: error statuses that are an answer here.

        Raises:
            RegistryTimeoutError, RegistryUnavailableError: retryable.
            PermissionRefusedError: 401, 403; or the agent refuses our certificate.
            RegistryDataError: the answer is not JSON.
            RegistryError: another status; or the agent's certificate is not to be trusted.
        """
        path = "/v1/" + "/".join(urllib.parse.quote(segment, safe="") for segment in segments)
        if params:
            # %20, not +: Consul's filter expressions are full of spaces.
            path += "?" + urllib.parse.urlencode(params, quote_via=urllib.parse.quote)
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        status, _, text = self.send(method, path, data, deadline, self.address.timeout, accept)
        if not text.strip():
            return Answer(status, None)
        if status == 404:
            return Answer(status, None)
        try:
            return Answer(status, json.loads(text))
        except ValueError as error:
            message = f"{self.address.url}: {method} {path}: the answer is not JSON: is this a Consul agent?"
            raise RegistryDataError(message) from error

    def send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        deadline: Deadline,
        timeout: float,
        accept: frozenset[int] = frozenset(),
    ) -> tuple[int, Mapping[str, str], str]:
        """Send one request; return status, headers and text of an answer that is not an error. See :meth:`call`."""
        if scope := self.address.scope:
            separator = "&" if "?" in path else "?"
            path += separator + urllib.parse.urlencode(scope, quote_via=urllib.parse.quote)
        where = f"{self.address.url}: {method} {path.partition('?')[0]}"
        token = self.address.tokens.current()
        bounded = deadline.capped(timeout)
        seconds = bounded.remaining()
        if seconds <= 0:
            raise RegistryTimeoutError(f"{where}: no time was left to ask")
        address = self.address
        headers = {**_HEADERS, "X-Consul-Token": token} if token else _HEADERS
        try:
            answer = self._connections.exchange(method, path, headers, data, bounded)
        except TimeoutError as error:
            raise RegistryTimeoutError(f"{where}: no answer within {seconds:.1f} s") from error
        except (http.client.HTTPException, OSError, UnicodeError) as error:
            if (refusal := _tls_refusal(where, address, error)) is not None:
                raise refusal from error
            if bounded.is_past:
                raise RegistryTimeoutError(f"{where}: no whole answer within {seconds:.1f} s") from error
            raise RegistryUnavailableError(f"{where}: {_reason(error)}") from error
        text = answer.body.decode("utf-8", "replace")
        # An agent never repeats the token, but whatever answers on this port might.
        shown = text.replace(token, "<token>") if token else text
        status = _checked(where, answer.status, shown.strip(), accept)
        return status, answer.headers, text

    @property
    def opened(self) -> int:
        """See :attr:`Connections.opened`."""
        return self._connections.opened

    def abort(self) -> None:
        """Cut off whatever is waiting for an answer, and refuse every later call: no byte leaves any more.

        What the agent has received already may still take effect. Idempotent.
        """
        self._connections.abort()

    def close(self) -> None:
        """Close idle connections. Calls after this open new ones. Idempotent."""
        self._connections.close()


def _checked(where: str, status: int, text: str, accept: frozenset[int]) -> int:
    """Return the status of an answer to go on with; raise what any other one means."""
    if 200 <= status < 300 or status in {404, *accept}:
        return status
    line = " ".join(text.split())[:_MAX_BODY_IN_MESSAGE] or "no reason given"
    if status in {401, 403} or (status >= 500 and _REFUSED.search(line)):
        message = f"{where}: HTTP {status}: {line}: check the token and its policy"
        raise PermissionRefusedError(message)
    if status >= 500 and _UNKNOWN_ID.match(line):
        # Up to some version an unknown id is a 500 (1.8: "Unknown check", "does not have associated TTL"), later a 404.
        return 404
    if status >= 500 or status == 429:
        raise RegistryUnavailableError(f"{where}: HTTP {status}: {line}")
    if 300 <= status < 400:
        raise RegistryError(f"{where}: HTTP {status}, a redirect, which is not followed: is this a Consul agent?")
    raise RegistryError(f"{where}: HTTP {status}: {line}")


def _tls_refusal(where: str, address: ConsulAddress, error: Exception) -> RegistryError | None:
    """Return the error for certificates that one side refuses, which no retry can help; None if that is not it.

    Who refuses whom makes the difference: what *we* do not trust is, as far as we are concerned, not there (status 3 of
    the commands); an agent that does not take our certificate refuses our credentials (status 7).
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message or str(error)
        if error.verify_code in _OUT_OF_DATE:
            advice = "renew the agent's certificate, or set the clock"
        elif error.verify_code in _OTHER_HOST:
            advice = f"the agent's certificate is not for {address.host}: use a name or address that is in it"
        else:
            advice = "is ca_file the authority that has signed the agent's certificate?"
        return RegistryError(f"{where}: the agent's certificate is not to be trusted: {said}: {advice}")
    # An alert is what the other side says; these two are about the certificate that was, or was not, sent.
    if isinstance(error, ssl.SSLError) and re.search(r"ALERT_.*CERT|ALERT_UNKNOWN_CA", error.reason or ""):
        what = "the certificate in cert_file" if address.cert else "a client without a certificate"
        advice = "who has signed it, and until when is it valid?" if address.cert else "give cert_file and key_file"
        return PermissionRefusedError(f"{where}: TLS: the agent refuses {what} ({error.reason}): {advice}")
    return None


def _reason(error: Exception) -> str:
    """Return the reason in one line."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}: check ca_file, cert_file and the host name"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: is the Consul agent running there?"
    if isinstance(error, ConnectionAbortedError):
        return str(error)  # our own: the client was closed
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MAX_BODY_IN_MESSAGE]}: is this a Consul agent?"
