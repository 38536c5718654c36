"""Registry URLs: ``scheme://host:port,host:port/path?option=value``, and the backend that each scheme names.

A URL stands in argv, in configuration and in logs, so it never holds a secret: user names and passwords in it are
refused, and options that look like one too. Tokens come from a file or the environment, as each backend's page says.
"""

from __future__ import annotations

import importlib
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar, cast

from registry_drain.clock import SYSTEM_CLOCK, Clock
from registry_drain.errors import ConfigurationError, MissingExtraError
from registry_drain.instance import check_port, format_endpoint
from registry_drain.registries.base import Registry

ENTRY_POINT_GROUP = "registry_drain.registries"
"""Each entry point's name is a URL scheme, its object a :data:`RegistryFactory`."""

_BUILT_IN = {
    # scheme: (module, factory, client library's import name, its name for pip, extra)
    "consul": ("registry_drain.registries.consul", "open_consul", "consul", "python-consul", "consul"),
    "consul+https": ("registry_drain.registries.consul", "open_consul", "consul", "python-consul", "consul"),
    "zookeeper": ("registry_drain.registries.zookeeper", "open_zookeeper", "kazoo", "kazoo", "zookeeper"),
    "zookeeper+tls": ("registry_drain.registries.zookeeper", "open_zookeeper", "kazoo", "kazoo", "zookeeper"),
    "local": ("registry_drain.registries.local", "open_local", "", "", ""),
}
_SECRET_OPTIONS = frozenset({"token", "password", "passwd", "secret", "auth"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RegistryURL:
    """A registry URL, taken apart and checked.

    Attributes:
        scheme: in lower case.
        hosts: ``(host, port)`` pairs; port is None where the URL has none, and the backend's default counts.
        path: begins with ``/``, or is empty; percent-escapes decoded.
        options: the query parameters. Read them with :meth:`option`.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...]
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    def option(self, name: str, convert: Callable[[str], T], default: T) -> T:
        """Return option ``name`` through ``convert``, or the default.

        Raises:
            ConfigurationError: if ``convert`` raises ValueError; the message names option, value and reason.
        """
        if name not in self.options:
            return default
        value = self.options[name]
        try:
            return convert(value)
        except ValueError as error:
            message = f"{self}: option {name}={value!r}: {error}"
            raise ConfigurationError(message) from error

    def check_options(self, known: frozenset[str]) -> None:
        """Raise :class:`ConfigurationError` for an option that the backend does not know: a typo must not pass
        silently.
        """
        for name in self.options:
            if name not in known:
                # The value is not repeated: it may be a secret under a name that we do not know.
                where = str(replace(self, options={}))
                message = f"{where}: unknown option {name!r}; {self.scheme} knows: {', '.join(sorted(known)) or 'none'}"
                raise ConfigurationError(message)

    def __str__(self) -> str:
        """Return the URL again, in its normal form; parsing it gives an equal object."""
        hosts = ",".join(host_text(host) if port is None else format_endpoint(host, port) for host, port in self.hosts)
        query = urllib.parse.urlencode(self.options)
        return f"{self.scheme}://{hosts}{urllib.parse.quote(self.path)}{'?' + query if query else ''}"


def host_text(host: str) -> str:
    """Return ``host`` as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


RegistryFactory = Callable[[RegistryURL, Clock], Registry]
"""Makes a registry from its URL; sends nothing. Raises :class:`ConfigurationError` for options that cannot work."""


def seconds(text: str) -> float:
    """Convert an option to a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        message = "must be a positive number of seconds"
        raise ValueError(message)
    return value


def boolean(text: str) -> bool:
    """Convert an option to a truth value: ``true``/``false``, ``1``/``0``, ``yes``/``no``, ``on``/``off``."""
    if text.lower() in {"true", "1", "yes", "on"}:
        return True
    if text.lower() in {"false", "0", "no", "off"}:
        return False
    message = "must be true or false"
    raise ValueError(message)


def parse_registry_url(text: str) -> RegistryURL:
    """Take a registry URL apart.

    Raises:
        ConfigurationError: saying which part is wrong. The message repeats the URL only when it is known to hold no
            secret.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if (
        not separator
        or not scheme
        or not all(letter.isascii() and (letter.isalnum() or letter in "+-.") for letter in scheme)
    ):
        message = (
            "a registry URL looks like consul://127.0.0.1:8500, zookeeper://host:2181/services or local:///directory"
        )
        raise ConfigurationError(message)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how argv shows bytes that are not UTF-8
        raise ConfigurationError(f"{scheme} URL holds bytes that are not UTF-8: escape them, as in %C3%A9")
    # RFC 3986 has neither spaces nor control characters.
    if any(ord(letter) < 0x21 or ord(letter) == 0x7F for letter in text):
        message = f"{scheme} URL holds a space or control character: escape it as %20"
        raise ConfigurationError(message)
    # Anywhere, not only before the first slash: a password may hold one, unescaped.
    if "@" in rest:
        message = (
            f"{scheme} URL holds user information before '@': secrets come from a file or the environment, never a URL "
            "(elsewhere in it an '@' is written %40)"
        )
        raise ConfigurationError(message)
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if fragment:
        message = f"{scheme} URL holds a '#': escape it as %23"
        raise ConfigurationError(message)
    hosts = tuple(_parse_host(scheme, part) for part in authority.split(",")) if authority else ()
    try:
        path, options = urllib.parse.unquote(slash + path, errors="strict"), _parse_options(scheme, query)
    except UnicodeError:
        # From None: the original holds the bytes, and they may be a secret.
        raise ConfigurationError(f"{scheme} URL: what its %-escapes stand for is not UTF-8") from None
    # They end up in paths, headers and log lines, where a line break would forge another one.
    if not "".join([path, *options, *options.values()]).isprintable():
        raise ConfigurationError(f"{scheme} URL: its %-escapes stand for a control or unprintable character")
    return RegistryURL(scheme, hosts, path, options)


def _parse_host(scheme: str, text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, tail = text[1:].partition("]")
        malformed = not bracket or not host or (tail and not tail.startswith(":"))
        port = tail[1:] if tail else None
    else:
        host, colon, tail = text.partition(":")
        malformed = not host or ":" in tail
        port = tail if colon else None
    if malformed or (port is not None and not (port.isascii() and port.isdigit())):
        message = f"{scheme} URL: {text!r} is not HOST, HOST:PORT or [IPV6]:PORT"
        raise ConfigurationError(message)
    return host, None if port is None else check_port(int(port[:6]))


def _parse_options(scheme: str, query: str) -> Mapping[str, str]:
    options: dict[str, str] = {}
    for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True, errors="strict"):
        if name.lower() in _SECRET_OPTIONS:
            message = (
                f"{scheme} URL: option {name!r} would put a secret into argv and logs: use a file or the environment"
            )
            raise ConfigurationError(message)
        if name in options:
            message = f"{scheme} URL: option {name!r} stands twice"
            raise ConfigurationError(message)
        options[name] = value
    return MappingProxyType(options)


def open_registry(url: str, clock: Clock = SYSTEM_CLOCK) -> Registry:
    """Return the registry that ``url`` names. Imports the backend, connects to nothing.

    Raises:
        ConfigurationError: a malformed URL, an unknown scheme or option.
        MissingExtraError: the backend's client library is not installed.
    """
    parsed = parse_registry_url(url)
    return _factory(parsed.scheme)(parsed, clock)


def _factory(scheme: str) -> RegistryFactory:
    # Built-in schemes skip the entry points, whose scan of the installation costs a command its fast start.
    if scheme in _BUILT_IN:
        module_name, factory, client, package, extra = _BUILT_IN[scheme]
        try:
            return cast("RegistryFactory", getattr(importlib.import_module(module_name), factory))
        except ModuleNotFoundError as error:
            if not client or (error.name or "").partition(".")[0] != client:
                raise
            raise MissingExtraError(f"{scheme}://", package, extra) from error
    from importlib import metadata  # here, because it alone takes as long as the rest of the package

    found = {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if scheme not in found:
        message = f"unknown registry {scheme}://: installed are {', '.join(sorted({*_BUILT_IN, *found}))}"
        raise ConfigurationError(message)
    point = found[scheme]
    try:
        return cast("RegistryFactory", point.load())
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{scheme}:// is declared as {point.value}, which cannot be loaded: {error}"
        ) from error
