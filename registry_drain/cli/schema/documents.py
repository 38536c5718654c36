"""One schema for each command that writes JSON."""

from __future__ import annotations

from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import SCHEMA_VERSION
from registry_drain.cli.schema.parts import (
    BOOLEAN,
    ENTRY,
    ENTRY_DEFINITION,
    INTEGER,
    REMOVAL,
    SECONDS,
    STRING,
    WATCHED_BACK,
    Schema,
    array,
    described,
    nullable,
    record,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_STATUS: Schema = {"enum": [int(status) for status in ExitStatus]}
_OUTCOME: Schema = {"enum": [status.word for status in ExitStatus]}
_RESULT = {"status": _STATUS, "outcome": _OUTCOME, "message": STRING}
_ASKED = {
    "registry": described(nullable(STRING), "the registry's URL, without secrets; null if none was given"),
    "service": described(nullable(STRING), "as asked for"),
}
_CONSENT = {"is_dry_run": nullable(BOOLEAN), "is_forced": nullable(BOOLEAN)}


def schema_of(command: str) -> Schema:
    """Return the schema of a command's JSON.

    Raises:
        KeyError: there is none of that name; :data:`COMMANDS` has them all.
    """
    members = COMMANDS[command]
    body = _LIST_WATCH if command == "list-watch" else _document(command, members)
    return {
        "$schema": DIALECT,
        "title": f"registry-drain {command} --json"
        if command != "list-watch"
        else "registry-drain list --watch --json",
        "description": "One line of standard output." if command == "list-watch" else "Standard output.",
        **body,
        **({} if command == "demo" else {"$defs": {"entry": ENTRY_DEFINITION}}),
    }


def _document(command: str, members: dict[str, Schema]) -> Schema:
    return record(
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "command": {"const": command},
            "status": described(_STATUS, "the exit status"),
            "outcome": described(_OUTCOME, "its word"),
            "message": described(STRING, "the line for people"),
            **members,
        }
    )


_DEREGISTER: dict[str, Schema] = {
    **_ASKED,
    **_CONSENT,
    "instance": described(nullable(ENTRY), "the candidate, if it is the only one"),
    "candidates": described(array(ENTRY), "all that fit"),
    "removal": described(nullable(REMOVAL), "of the only one"),
    "watched_back": described(nullable(WATCHED_BACK), "of the only one"),
    "companions": described(array(array(STRING)), "what goes with each candidate, a line each"),
    "results": array(
        record({"instance": ENTRY, **_RESULT, "removal": nullable(REMOVAL), "watched_back": nullable(WATCHED_BACK)})
    ),
}
_LIST: dict[str, Schema] = {**_ASKED, "instances": array(ENTRY)}
_ROTATE: dict[str, Schema] = {
    **_ASKED,
    **_CONSENT,
    "reason": nullable(STRING),
    "candidates": array(ENTRY),
    "results": array(
        record(
            {
                "instance": ENTRY,
                **_RESULT,
                "rotation": nullable(record({"is_out": BOOLEAN, "how": STRING, "detail": nullable(STRING)})),
            }
        )
    ),
}
_SWEEP: dict[str, Schema] = {
    **_ASKED,
    **_CONSENT,
    "probed": described(
        nullable(record({"from_host": STRING, "addresses": INTEGER, "tries": INTEGER, "connect_timeout": SECONDS})),
        "how addresses were tried; null if none were",
    ),
    "ghosts": array(
        record(
            {
                "instance": ENTRY,
                "evidence": {
                    **array(
                        record(
                            {
                                "kind": {"enum": ["critical", "dead_agent", "dead_owner", "refused", "no_answer"]},
                                "detail": STRING,
                                "seconds": described(nullable(SECONDS), "how long it is proven to have been so"),
                                "tries": described(nullable(INTEGER), "connections that were tried"),
                            }
                        )
                    ),
                    "minItems": 1,
                },
                "spared": described(nullable(STRING), "why it is left alone; null if it is to go"),
                "status": described(nullable(_STATUS), "of its removal; null if none was tried"),
                "outcome": nullable(_OUTCOME),
                "message": nullable(STRING),
                "removal": nullable(REMOVAL),
                "watched_back": nullable(WATCHED_BACK),
            }
        )
    ),
    "leftovers": described(
        array(
            record(
                {
                    "subject": STRING,
                    "locator": STRING,
                    "status": described(nullable(_STATUS), "of its deletion; null if none was tried"),
                    "message": STRING,
                }
            )
        ),
        "what drain has left of instances that are gone",
    ),
}
_TALLY = record(
    {
        **dict.fromkeys(("restarts", "requests", "failed", "unclean_stops"), INTEGER),
        "failures": {"type": "object", "additionalProperties": INTEGER},
        **dict.fromkeys(("p99", "p99_during_stops", "stop_median", "stop_longest"), nullable(SECONDS)),
        "unclean_reports": array(STRING),
    }
)
_DEMO: dict[str, Schema] = {
    "registry": nullable(STRING),
    "naive": nullable(_TALLY),
    "drained": nullable(_TALLY),
}
_EVENT = record(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "command": {"const": "list"},
        "event": {"enum": ["added", "changed", "removed", "unreachable", "reachable"]},
        "at": described({"type": "number"}, "UNIX seconds of noticing it"),
        "instance": described(nullable(ENTRY), "as it is now or, removed, as it was; null if the event is none's"),
        "before": described(nullable(ENTRY), "changed: as it was"),
        "message": described(STRING, "why the registry is out of reach; else empty"),
    }
)
_LIST_WATCH: Schema = {
    "oneOf": [
        _EVENT,
        described(_document("list", _LIST), "the last line: how the command ended, and what was listed last"),
    ]
}
COMMANDS: dict[str, dict[str, Schema]] = {
    "demo": _DEMO,
    "deregister": _DEREGISTER,
    "drain": _ROTATE,
    "list": _LIST,
    "list-watch": {},
    "sweep": _SWEEP,
    "undrain": _ROTATE,
}
"""The members that each command's document has beside the common ones."""
