"""``registry-drain list``: what is registered, who owns it, and how it is. Changes nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from registry_drain.cli.arguments import CommandParser
from registry_drain.cli.exit_status import ExitStatus
from registry_drain.cli.invocation import Document, Verdict, invoke
from registry_drain.cli.output import Output


def main(arguments: Sequence[str] | None = None, *, program: str = "registry-drain list") -> int:
    """Run the command and return its exit status."""
    return invoke(_parser(program), _list, arguments, {"registry": None, "service": None, "instances": []})


def _parser(program: str) -> CommandParser:
    parser = CommandParser(
        program,
        "Show what is registered: a table at a terminal, tab-separated lines elsewhere, JSON on request.",
        "exit status: 0 listed, be it nothing; 2 wrong arguments; 3 registry unreachable or out of time; 7 refused",
    )
    parser.add_registry()
    parser.add_argument("--service", metavar="NAME", help="only this service (default: all)")
    parser.add_argument("--json", action="store_true", help="write one JSON object, whatever happens")
    parser.add_debug()
    return parser


def _list(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    # Here, so that the help loads no registry.
    from registry_drain.cli.entries import entry_document, entry_table
    from registry_drain.cli.patience import read_entries
    from registry_drain.cli.table import write_table
    from registry_drain.clock import SYSTEM_CLOCK, Deadline
    from registry_drain.errors import ConfigurationError
    from registry_drain.registries.url import open_registry

    if options.service == "":
        raise ConfigurationError("--service is empty: leave it out to see all")
    document["service"] = options.service
    registry = open_registry(options.registry)
    document["registry"] = registry.url
    try:
        entries = read_entries(registry, options.service, Deadline.after(options.timeout), output)
    finally:
        registry.close()
    document["instances"] = [entry_document(entry) for entry in entries]
    write_table(entry_table(entries, SYSTEM_CLOCK.unix_time()), output)
    if not entries:
        # Said beside the table, not in it: a script that counts lines must not count this one.
        of_service = "" if options.service is None else f" of service {options.service!r}"
        output.remark(f"no instance{of_service} is registered in {registry.url}")
    return ExitStatus.DONE, ""
