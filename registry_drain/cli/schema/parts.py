"""What several documents have: types, an entry, a removal."""

from __future__ import annotations

Schema = dict[str, object]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
SECONDS: Schema = {"type": "number", "minimum": 0}
ENTRY: Schema = {"$ref": "#/$defs/entry"}


def nullable(schema: Schema) -> Schema:
    """Return ``schema``, or null."""
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def described(schema: Schema, description: str) -> Schema:
    """Return ``schema`` with a description."""
    return {**schema, "description": description}


def array(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def record(members: dict[str, Schema]) -> Schema:
    """Return the schema of an object, all of whose members are always there."""
    return {"type": "object", "properties": members, "required": list(members)}


_KNOWN = "null if the registry does not know"
_CHECK = record(
    {
        "id": STRING,
        "status": described(STRING, "passing, warning, critical or maintenance"),
        "is_own": described(BOOLEAN, "whether it checks this instance; else its host or agent"),
        "output": nullable(STRING),
        "version": described(nullable(STRING), "the same for as long as the check has not changed"),
    }
)
ENTRY_DEFINITION: Schema = record(
    {
        "service": STRING,
        "id": STRING,
        "address": described(nullable(STRING), f"host name or IP; {_KNOWN}"),
        "port": described(nullable(INTEGER), _KNOWN),
        "tags": array(STRING),
        "metadata": {"type": "object", "additionalProperties": STRING},
        "owner": described(nullable(STRING), "who keeps it: a Consul node, a ZooKeeper session, a process"),
        "is_live": described(nullable(BOOLEAN), "whether somebody keeps it alive right now"),
        "health": described(nullable(STRING), "passing, warning, critical or maintenance; null where nothing checks"),
        "is_ephemeral": described(nullable(BOOLEAN), "whether it goes when its owner does"),
        "registered_at": described(nullable({"type": "number"}), "UNIX seconds"),
        "problem": described(nullable(STRING), "why it could not be read in full"),
        "locator": described(nullable(STRING), "where it stands: a znode's path, node and id in Consul, a file"),
        "version": described(nullable(STRING), "differs after any re-registration"),
        "endpoints": described(
            array(record({"address": STRING, "port": INTEGER})), "where else the same process is reached"
        ),
        "node": described(nullable(STRING), "the host or agent that it is registered on"),
        "managed_by": described(nullable(STRING), "a system that registers again what it misses"),
        "checks": array(_CHECK),
        "layout": described(nullable(STRING), "the form in which it is written, where a registry knows several"),
    }
)
REMOVAL: Schema = record(
    {
        "outcome": {
            "enum": ["confirmed", "unverifiable", "unconfirmed", "successor", "not_registered", "refused"],
        },
        "detail": nullable(STRING),
        "attempts": {"type": "integer", "minimum": 0},
    }
)
WATCHED_BACK: Schema = record(
    {
        "seconds": described(SECONDS, "how long it was looked for, or after how long it was seen"),
        "returned": nullable(ENTRY),
        "brought_back_by": nullable(
            record({"who": STRING, "is_same_owner": nullable(BOOLEAN), "advice": STRING}),
        ),
    }
)
