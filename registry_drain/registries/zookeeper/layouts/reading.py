"""What layouts share for reading what others have written: nothing of it raises, whatever the bytes.

Node names and data are anybody's: wrong types, numbers that are none, half a surrogate pair, documents nested a
thousand deep.
"""

from __future__ import annotations

import ipaddress
import json
import re
from urllib.parse import urlsplit

from registry_drain.errors import ConfigurationError
from registry_drain.instance import MAX_PORT, parse_endpoint

_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.IGNORECASE | re.ASCII)
_LATEST_MS = 253402300800000
"""The year 10000, which no date formatting survives."""


def read_object(data: bytes) -> dict[str, object] | str:
    """Return the JSON object in ``data``, or what is wrong with it."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return f"not JSON ({len(data)} bytes)"
    return document if isinstance(document, dict) else f"not a JSON object but {_kind(document)}"


def read_endpoint(text: str) -> tuple[str, int]:
    """Return the address and port of ``host:port``; nothing of both if it is something else."""
    try:
        return parse_endpoint(text)
    except ConfigurationError:
        return "", 0


def read_url_endpoint(url: str) -> tuple[str, int]:
    """Return the address and port in a URL; nothing of both if it has not both."""
    try:
        netloc = urlsplit(url).netloc
    except ValueError:  # brackets that do not match
        return "", 0
    return read_endpoint(netloc.rpartition("@")[2])


def is_sure_endpoint(text: str) -> bool:
    """Return whether ``text`` is ``host:port`` beyond doubt: ``12:30`` is a time of day, ``key:1`` a setting.

    The host is an IP address, ``localhost``, or a name with letters and a dot, a dash or a digit.
    """
    host, port = read_endpoint(text)
    if not port:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # The last label of a name is never a number (RFC 1123, section 2.1).
        is_name = _HOST_NAME.fullmatch(host) is not None and not host.rpartition(".")[2].isdigit()
        return is_name and (host == "localhost" or not host.isalpha())
    return True


def merged_endpoints(main: tuple[str, int], further: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Return those of ``further`` that have address and port, each once, and not the main one again."""
    found = dict.fromkeys(each for each in further if each[0] and each[1] and each != main)
    return tuple(found)


def read_port(value: object) -> int:
    """Return the port that a number, or a string of digits, says; 0 if it is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    is_port = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PORT
    return value if is_port and isinstance(value, int) else 0


def read_time(milliseconds: object) -> float | None:
    """Return UNIX seconds; None for what is no time."""
    is_time = isinstance(milliseconds, int) and not isinstance(milliseconds, bool) and 0 < milliseconds < _LATEST_MS
    return milliseconds / 1000 if is_time and isinstance(milliseconds, int) else None


def text_of(value: object) -> str:
    """Return a string as it is, anything else as JSON."""
    return printable(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))


def printable(text: str) -> str:
    """Return ``text`` without the half surrogate pairs that JSON may hold: no terminal and no file takes them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", str: "a string", list: "an array"}.get(type(value), "a number")
