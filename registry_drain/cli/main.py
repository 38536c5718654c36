"""``registry-drain COMMAND``: finds the command and imports it, and none of the others."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import cast

from registry_drain.cli.command.arguments import CommandParser
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output
from registry_drain.errors import ConfigurationError

PROGRAM = "registry-drain"
COMMANDS = {
    "completion": ("registry_drain.cli.completion", "print a script for the completion of a shell"),
    "demo": ("registry_drain.cli.demo.command", "restart a fleet under load, stopped naively and drained, and compare"),
    "deregister": (
        "registry_drain.cli.deregister.command",
        "remove instances from a registry, and prove that they are gone",
    ),
    "drain": ("registry_drain.cli.drain.command", "take instances out of rotation, without removing them"),
    "list": ("registry_drain.cli.listing.command", "show what is registered, who owns it, and how it is"),
    "schema": ("registry_drain.cli.schema.command", "print the JSON Schema of a command's JSON"),
    "sweep": ("registry_drain.cli.sweep.command", "find instances that are dead, and remove them"),
    "undrain": ("registry_drain.cli.drain.command", "put instances back into rotation"),
}
"""By name: the module, which has ``main`` and ``make_parser``, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        module, _ = COMMANDS[words[0]]
        return cast("int", importlib.import_module(module).main(words[1:], program=f"{PROGRAM} {words[0]}"))
    return invoke(_parser(), _no_command, words)


def _parser() -> CommandParser:
    from registry_drain import __version__

    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    parser = CommandParser(
        PROGRAM,
        "Look at service registries, take instances out of them, and see what draining is worth.",
        f"commands:\n{commands}\n\n{PROGRAM} COMMAND --help shows the options of one.",
    )
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _no_command(options: argparse.Namespace, _output: Output, _document: Document) -> Verdict:
    given = "no command" if options.command is None else f"no command {options.command!r}"
    raise ConfigurationError(f"{given}: there are {', '.join(COMMANDS)}; see {PROGRAM} --help")
