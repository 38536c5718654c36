"""What a Consul URL may say, checked before anything is sent; and what Consul would refuse of an instance.

No option holds a secret: the token comes from a file, the environment or the program.
"""

from __future__ import annotations

import re
from pathlib import Path

from registry_drain.errors import ConfigurationError
from registry_drain.instance import ServiceInstance, parse_endpoint
from registry_drain.registries.consul.http import ConsulAddress
from registry_drain.registries.consul.listed import META_PREFIX
from registry_drain.registries.consul.registration.own import Lifetimes
from registry_drain.registries.consul.token import TokenSource
from registry_drain.registries.url import RegistryURL, seconds

OPTIONS = frozenset(
    {
        "agent",
        "ca_file",
        "cert_file",
        "dc",
        "deregister_critical_after_s",
        "key_file",
        "ns",
        "partition",
        "timeout_s",
        "token_file",
        "ttl_s",
    }
)
DEFAULT_TTL = 15.0
"""Seconds a killed process stays in the callers' lists. Five heartbeats: one slow agent restart must not end it."""
SHORTEST_TTL = 1.0
DEFAULT_DEREGISTER_AFTER = 60.0
"""Consul takes nothing shorter: developer.hashicorp.com/consul/api-docs/agent/check, DeregisterCriticalServiceAfter."""
DEFAULT_TIMEOUT = 5.0
"""Seconds for one request: two attempts fit into the usual 10 s for deregistering."""

# https://developer.hashicorp.com/consul/docs/services/configuration/services-configuration-reference#meta
_MAX_META_KEYS, _MAX_META_KEY, _MAX_META_VALUE = 64, 128, 512
_OWN_META_KEYS = 3
_META_KEY = re.compile(r"[A-Za-z0-9_-]+")


def address_of(url: RegistryURL, token: str | None) -> ConsulAddress:
    """Return where ``url`` points to, with what is needed to talk to it; ``token`` wins over the options.

    Raises:
        ConfigurationError: an option that is unknown or cannot work.
    """
    url.check_options(OPTIONS)
    if len(url.hosts) > 1 or url.path.strip("/"):
        message = f"{url}: name one agent and no path, as in consul://127.0.0.1:8500: agents know their cluster"
        raise ConfigurationError(message)
    is_tls = url.scheme == "consul+https"
    host, port = url.hosts[0] if url.hosts else ("127.0.0.1", None)
    files = {name: url.option(name, _readable, "") for name in ("ca_file", "cert_file", "key_file")}
    if any(files.values()) and not is_tls:
        raise ConfigurationError(f"{url}: certificates need consul+https://")
    if bool(files["cert_file"]) != bool(files["key_file"]):
        raise ConfigurationError(f"{url}: cert_file and key_file belong together")
    return ConsulAddress(
        url=str(url),
        scheme="https" if is_tls else "http",
        host=host,
        # Consul's own defaults: 8500, and 8501 for HTTPS.
        port=port or (8501 if is_tls else 8500),
        verify=files["ca_file"] or True,
        cert=(files["cert_file"], files["key_file"]) if files["cert_file"] else None,
        timeout=url.option("timeout_s", seconds, DEFAULT_TIMEOUT),
        tokens=TokenSource.choose(token, url.options.get("token_file")),
        dc=url.option("dc", str, ""),
        ns=url.option("ns", str, ""),
        partition=url.option("partition", str, ""),
    )


def named_agent(url: RegistryURL, given: str | None, own: ConsulAddress) -> ConsulAddress | None:
    """Return the agent that was named to be asked; ``given`` wins over the option.

    Raises:
        ConfigurationError: it is not HOST:PORT.
    """
    text = given if given is not None else url.options.get("agent")
    if text is None:
        return None
    try:
        host, port = parse_endpoint(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{url}: the agent to ask: {error}") from error
    return own.at(host, port)


def lifetimes_of(url: RegistryURL) -> Lifetimes:
    """Return how long an instance that is registered through ``url`` outlives its process.

    Raises:
        ConfigurationError: a time that Consul would not keep.
    """
    return Lifetimes(
        ttl=url.option("ttl_s", _at_least(SHORTEST_TTL), DEFAULT_TTL),
        deregister_after=url.option(
            "deregister_critical_after_s", _at_least(DEFAULT_DEREGISTER_AFTER), DEFAULT_DEREGISTER_AFTER
        ),
    )


def _readable(text: str) -> str:
    try:
        with Path(text).open("rb"):
            return text
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ValueError(message) from error


class _at_least:  # noqa: N801 -- reads as a function where it is used
    def __init__(self, least: float) -> None:
        self._least = least

    def __call__(self, text: str) -> float:
        value = seconds(text)
        if value < self._least:
            message = f"must be at least {self._least:g} seconds"
            raise ValueError(message)
        return value


def check_metadata(instance: ServiceInstance) -> None:
    """Refuse what the agent would refuse, before anything is sent, and what would collide with our own keys."""
    if len(instance.metadata) > _MAX_META_KEYS - _OWN_META_KEYS:
        message = f"metadata of {instance}: {len(instance.metadata)} keys, and Consul has room for "
        raise ConfigurationError(f"{message}{_MAX_META_KEYS - _OWN_META_KEYS} beside our own")
    for key, value in instance.metadata.items():
        if not _META_KEY.fullmatch(key) or len(key) > _MAX_META_KEY:
            problem = f"Consul takes 1 to {_MAX_META_KEY} of letters, digits, - and _ as a key"
        elif key.lower().startswith(("consul-", META_PREFIX)):
            problem = "the prefix is reserved"
        elif len(value.encode()) > _MAX_META_VALUE:
            problem = f"Consul takes {_MAX_META_VALUE} bytes as a value, this one has {len(value.encode())}"
        else:
            continue
        raise ConfigurationError(f"metadata {key!r} of {instance}: {problem}")
