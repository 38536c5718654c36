"""Since when an instance has been critical: what ``--critical-for`` means where no registry says it.

Theory of operation. Consul shows that a check is critical, and never since when. But a check carries an index that
changes with every change of it. So what was seen is remembered (one file for each registry,
``$XDG_STATE_HOME/registry-drain/critical-since/``), and an instance *has been critical for T* if it was seen critical T
ago and there is proof that it was not anything else in between: between each look and the next one at least one check
that was critical both times is unchanged, or both looks together took less time than a check stays passing.

Rules:

1. In doubt it is younger. A check that changed and is critical again may have passed in between, or has merely written
   something else into its output: its index tells no difference, and the agent's history is nowhere to be read. So the
   time starts again, unless an agent runs the check (``_RUN_BY_AGENTS``) and the two looks were ``CLOSE``: one that had
   passed would have been seen to.
2. Another registration of the same id is another instance.
3. A clock that is set never makes anything older: see :mod:`registry_drain.cli.choosing.moment`. The time that a read
   took does not count.
4. A command that does not wait is right at the second run, not at the first one: it says how long to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry_drain.cli.choosing.moment import Moment, is_seconds
from registry_drain.cli.choosing.state_file import StateFile, name_of, state_directory
from registry_drain.registries.base import RegistryEntry

CRITICAL = "critical"
CLOSE = 1.0
"""Seconds from the beginning of a look to the end of the next one within which no check passes and fails again that an
agent runs: Consul runs none more often (agent/checks, ``MinInterval``), and tells its servers of every change of a
status at once, though of mere output late (``check_update_interval``)."""
_RUN_BY_AGENTS = frozenset({"http", "tcp", "udp", "grpc", "h2ping", "docker", "script"})
"""Consul's types of checks that have an interval. A ``ttl`` has none: whoever reports it may do so twice at once."""
_FORMAT = 1
_FORGOTTEN_AFTER = 30 * 86_400.0
"""Seconds after which what was not seen again is forgotten. Whoever is asked about it later starts again."""

Key = tuple[str, str, str]
"""Service, where it stands, and which registration of it."""


@dataclass(frozen=True, slots=True)
class _Record:
    """One instance that was critical when it was last seen.

    Attributes:
        seconds: how long it has been so, proven, up to ``seen``.
        seen: when it was last seen.
        checks: the critical checks at that time, by id: their versions.
        asked: when the look began that saw it last; None if that is not known.
    """

    seconds: float
    seen: Moment
    checks: dict[str, str]
    asked: Moment | None = None


class CriticalSince:
    """What was seen of one registry's critical instances. Not thread-safe; concurrent processes lose nothing.

    ::

        since = CriticalSince.of(registry.url)
        asked_at = Moment.now()
        entries = registry.entries(service, deadline)
        since.note(entries, asked_at)
        ghosts = [entry for entry in entries if since.is_critical_for(entry, 600.0)]

    Args:
        file: where to remember it; None remembers nothing beyond this object.
    """

    def __init__(self, file: StateFile | None) -> None:
        """Read nothing yet."""
        self._file = file
        self._records: dict[Key, _Record] = {}

    @classmethod
    def of(cls, registry_url: str) -> CriticalSince:
        """Return what this user's earlier runs saw of the registry at ``registry_url``.

        Raises:
            ConfigurationError: there is no place to remember it.
        """
        return cls(StateFile(_path(registry_url)))

    def note(self, entries: Iterable[RegistryEntry], asked_at: Moment, answered_at: Moment | None = None) -> None:
        """Remember what a read showed that began at ``asked_at`` and has just ended.

        Entries that are not among them (of other services, say) are left as they were.

        Raises:
            ConfigurationError: it cannot be remembered.
        """
        shown = list(entries)
        answered_at = answered_at or Moment.now()
        if self._file is None:
            self._records = _after(self._records, shown, asked_at, answered_at)
            return

        def change(content: object) -> object:
            self._records = _after(_parsed(content), shown, asked_at, answered_at)
            return _written(self._records)

        self._file.update(change)

    def age(self, entry: RegistryEntry) -> float | None:
        """Return for how many seconds ``entry`` is proven to have been critical; None if it was not when last seen."""
        record = self._records.get(_key(entry))
        return None if record is None else record.seconds

    def is_critical_for(self, entry: RegistryEntry, seconds: float) -> bool:
        """Whether ``entry`` is proven to have been critical for ``seconds`` or longer."""
        age = self.age(entry)
        return age is not None and age >= seconds

    def younger(self, entries: Iterable[RegistryEntry], seconds: float) -> list[RegistryEntry]:
        """Return those of ``entries`` that are critical, and not proven to have been so for ``seconds``."""
        return [entry for entry in entries if entry.health == CRITICAL and not self.is_critical_for(entry, seconds)]


def can_be_proven(entry: RegistryEntry) -> bool:
    """Whether the registry says enough about a critical ``entry`` for its time to count at all."""
    return bool(_critical_checks(entry))


def _path(registry_url: str) -> Path:
    return state_directory() / "critical-since" / f"{name_of(registry_url)}.json"


def _key(entry: RegistryEntry) -> Key:
    return entry.service, entry.locator or entry.id, entry.version


def _critical_checks(entry: RegistryEntry) -> dict[str, str]:
    return {check.id: check.version for check in entry.checks if check.status == CRITICAL and check.version}


def _after(
    records: dict[Key, _Record], shown: Sequence[RegistryEntry], asked_at: Moment, answered_at: Moment
) -> dict[Key, _Record]:
    """Return the records after one more look."""
    kept = {key: record for key, record in records.items() if asked_at.elapsed_since(record.seen) < _FORGOTTEN_AFTER}
    for entry in shown:
        before = kept.pop(_key(entry), None)
        if entry.health == CRITICAL:
            kept[_key(entry)] = _seen_again(before, entry, asked_at, answered_at)
    return kept


def _seen_again(before: _Record | None, entry: RegistryEntry, asked_at: Moment, answered_at: Moment) -> _Record:
    checks = _critical_checks(entry)
    if before is None:
        return _Record(0.0, answered_at, checks, asked_at)
    is_unbroken = any(before.checks.get(check) == version for check, version in checks.items()) or (
        _are_close(before, answered_at)
        and any(
            check.id in before.checks and check.kind in _RUN_BY_AGENTS for check in entry.checks if check.id in checks
        )
    )
    seconds = before.seconds + asked_at.elapsed_since(before.seen) if is_unbroken else 0.0
    # Two runs at once: the other one may have looked later than this one, and proven more already.
    if is_unbroken and before.seen.boot == answered_at.boot and before.seen.elapsed_since(answered_at) > 0:
        return before
    return _Record(seconds, answered_at.not_before(before.seen), checks, asked_at)


def _are_close(before: _Record, answered_at: Moment) -> bool:
    """Whether too little time has passed for a check to pass and fail again; only one boot's clock can tell."""
    asked = before.asked
    if asked is None or not asked.boot or asked.boot != answered_at.boot:
        return False
    return 0.0 <= answered_at.ticks - asked.ticks <= CLOSE


def _written(records: dict[Key, _Record]) -> object:
    return {
        "format": _FORMAT,
        "critical": [
            {
                "key": list(key),
                "seconds": record.seconds,
                "seen": record.seen.raw(),
                "checks": record.checks,
                "asked": None if record.asked is None else record.asked.raw(),
            }
            for key, record in records.items()
        ],
    }


def _parsed(content: object) -> dict[Key, _Record]:
    """Return what can be understood of a file; the rest is as if it had never been seen."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return {}
    found: dict[Key, _Record] = {}
    raw = content.get("critical")
    for each in raw if isinstance(raw, list) else ():
        try:
            key, record = _parsed_record(each)
        except ValueError:
            continue
        found[key] = record
    return found


def _parsed_record(raw: object) -> tuple[Key, _Record]:
    fields = raw if isinstance(raw, dict) else {}
    key, seconds, checks = fields.get("key"), fields.get("seconds"), fields.get("checks")
    if not (isinstance(key, list) and len(key) == 3 and all(isinstance(each, str) for each in key)):
        raise ValueError("no key")
    if not isinstance(checks, dict) or not all(isinstance(version, str) for version in checks.values()):
        raise ValueError("no checks")
    if not isinstance(seconds, int | float) or not is_seconds(seconds):
        raise ValueError("no seconds")
    asked = None if fields.get("asked") is None else Moment.of(fields["asked"])
    return (key[0], key[1], key[2]), _Record(float(seconds), Moment.of(fields.get("seen")), dict(checks), asked)
