"""``registry-drain schema COMMAND``: print the JSON Schema of a command's JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from registry_drain.cli.command.arguments import CommandParser
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output


def main(arguments: Sequence[str] | None = None, *, program: str = "registry-drain schema") -> int:
    """Run the command and return its exit status."""
    return invoke(make_parser(program), _schema, arguments)


def make_parser(program: str) -> CommandParser:
    """Return what takes the arguments apart."""
    made = CommandParser(
        program,
        "Print the JSON Schema (draft 2020-12) of what a command writes with --json.",
        "exit status: 0 printed; 2 there is no such command",
    )
    made.add_argument("command", metavar="COMMAND", help="deregister, list, …; list-watch for `list --watch`")
    made.add_debug()
    return made


def _schema(options: argparse.Namespace, output: Output, _document: Document) -> Verdict:
    import json

    from registry_drain.cli.schema.documents import COMMANDS, schema_of
    from registry_drain.errors import ConfigurationError

    if options.command not in COMMANDS:
        raise ConfigurationError(f"{options.command!r} writes no JSON: there are {', '.join(COMMANDS)}")
    output.write(json.dumps(schema_of(options.command), indent=2) + "\n")
    return ExitStatus.DONE, ""
