"""Changing one value in a JSON document and leaving every other byte as it is.

Reading a document and writing it again would lose what its writer cares about: spaces, the spelling of numbers and
escapes, keys that stand twice. So the text is walked with the JSON decoder of the standard library, which says where
each value ends, and only the value is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.decoder import WHITESPACE, scanstring  # type: ignore[attr-defined]

from registry_drain.errors import RegistryDataError

_DECODER = json.JSONDecoder()


def with_member(data: bytes, keys: Sequence[str], value: object) -> bytes:
    """Return the JSON object in ``data`` with ``value`` at ``keys``, each of which leads one object deeper.

    What is missing on the way is added, at the end of its object; null on the way counts as missing.

    Raises:
        RegistryDataError: it is no JSON object in UTF-8.
    """
    try:
        text = data.decode("utf-8")
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise RegistryDataError(f"its data are no JSON object ({len(data)} bytes)")
    return _with_member(text, _skip(text, 0), keys, value).encode()


def _with_member(text: str, start: int, keys: Sequence[str], value: object) -> str:
    """Return all of ``text`` with the object that begins at ``start`` changed."""
    members = _members(text, start)
    span = members.get(keys[0])
    if span is None:
        added = f"{_written(keys[0])}:{_written(_nested(keys[1:], value))}"
        at = max((stop for _, stop in members.values()), default=start + 1)
        return f"{text[:at]}{',' if members else ''}{added}{text[at:]}"
    if len(keys) > 1 and text[span[0]] == "{":
        return _with_member(text, span[0], keys[1:], value)
    return f"{text[: span[0]]}{_written(_nested(keys[1:], value))}{text[span[1] :]}"


def _members(text: str, start: int) -> dict[str, tuple[int, int]]:
    """Return where each value of the object at ``start``, which is known to be one, begins and ends.

    Of a key that stands twice it is the last one, which is the one that readers believe.
    """
    members: dict[str, tuple[int, int]] = {}
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, at = scanstring(text, at + 1)
        begin = _skip(text, _skip(text, at) + 1)
        _, stop = _DECODER.raw_decode(text, begin)
        members[key] = begin, stop
        at = _skip(text, stop)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _skip(text: str, at: int) -> int:
    match = WHITESPACE.match(text, at)
    return int(match.end())


def _nested(keys: Sequence[str], value: object) -> object:
    for key in reversed(keys):
        value = {key: value}
    return value


def _written(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
