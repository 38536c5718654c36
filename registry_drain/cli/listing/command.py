"""``registry-drain list``: what is registered, who owns it, and how it is. Changes nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from registry_drain.cli.choosing.options import add_observe, add_output, add_selection
from registry_drain.cli.command.arguments import CommandParser
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output


def main(arguments: Sequence[str] | None = None, *, program: str = "registry-drain list") -> int:
    """Run the command and return its exit status."""
    return invoke(make_parser(program), _list, arguments, {"registry": None, "service": None, "instances": []})


def make_parser(program: str) -> CommandParser:
    """Return what takes the arguments apart."""
    parser = CommandParser(
        program,
        "Show what is registered: a table at a terminal, tab-separated lines elsewhere, JSON on request.",
        "exit status: 0 listed, be it nothing; 2 wrong arguments; 3 registry unreachable or out of time; 7 refused,"
        " be it one\nentry that may be meant and may not be read; 130 Ctrl-C, which is how --watch ends",
    )
    parser.add_registry()
    add_selection(parser, with_all=False)
    add_observe(parser)
    parser.add_argument("--watch", action="store_true", help="follow it: show what changes, until Ctrl-C")
    add_output(parser)
    parser.add_debug()
    return parser


def _list(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    # Here, so that the help loads no registry.
    from registry_drain.cli.choosing.finding import find, opened
    from registry_drain.cli.choosing.selection import Selection
    from registry_drain.cli.command.entries import entry_document, entry_table
    from registry_drain.cli.command.table import write_table
    from registry_drain.clock import SYSTEM_CLOCK, Deadline
    from registry_drain.errors import ConfigurationError

    selection = Selection.of(options)
    if options.watch and options.observe:
        raise ConfigurationError("--observe waits once, and --watch looks for ever: choose one")
    document["service"] = selection.service
    with opened(options.registry, SYSTEM_CLOCK) as registry:
        document["registry"] = registry.url
        if options.watch:
            from registry_drain.cli.listing.watch import ListWatch

            return ListWatch(registry, selection, options.timeout, output, document, SYSTEM_CLOCK).run()
        found = find(registry, selection, Deadline.after(options.timeout), output, observe=options.observe)
    document["instances"] = [entry_document(entry) for entry in found.chosen]
    write_table(entry_table(found.chosen, SYSTEM_CLOCK.unix_time()), output)
    # Said beside the table, not in it: a script that counts lines must not count this one.
    if found.note:
        output.remark(found.note)
    elif found.unread and selection.is_narrow:
        pass  # the message says it
    elif not found.listed:
        of_service = "" if selection.service is None else f" of service {selection.service!r}"
        output.remark(f"no instance{of_service} is registered in {registry.url}")
    elif not found.chosen:
        output.remark(f"none of {len(found.listed)} instances in {registry.url} has {selection}")
    if not selection.is_narrow:
        return ExitStatus.DONE, ""  # what could not be read is in the list, with its problem
    return found.qualified((ExitStatus.DONE, f"{len(found.chosen)} fit")) if found.unread else (ExitStatus.DONE, "")
