"""``deregister``: take one instance out of a cluster, prove that it is gone, and see whether it comes back.

What it does is in :mod:`registry_drain.cli.deregistration`; here are its arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from registry_drain.cli.arguments import CommandParser, some_seconds
from registry_drain.cli.invocation import Document, Verdict, invoke
from registry_drain.cli.options import add_selection
from registry_drain.cli.output import Output

_EPILOG = """\
exit status:
   0  gone, and proven to be (--dry-run: found)
   2  the arguments cannot work, or fit several instances; nothing was done
   3  the registry could not be reached, or not in time; the message says whether anything was removed
   4  no such instance
   5  it was gone and came back
   6  removed, but we may not look whether it is gone
   7  refused: by the registry, or because a live owner has it
 130  interrupted

example:
  deregister consul://127.0.0.1:8500 --service calculator --address 10.0.0.7:9090 --watch-back 30
"""


def main(arguments: Sequence[str] | None = None, *, program: str = "deregister") -> int:
    """Run the command and return its exit status."""
    blank: Document = {
        "registry": None,
        "service": None,
        "is_dry_run": None,
        "is_forced": None,
        "instance": None,
        "candidates": [],
        "removal": None,
        "watched_back": None,
    }
    return invoke(_parser(program), _deregister, arguments, blank)


def _parser(program: str) -> CommandParser:
    parser = CommandParser(program, "Remove one instance from a registry, and prove that it is gone.", _EPILOG)
    parser.add_registry()
    add_selection(parser)
    parser.add_argument(
        "--watch-back",
        type=some_seconds,
        default=0.0,
        metavar="S",
        help="then look for this many seconds whether somebody registers it again",
    )
    parser.add_argument("--force", action="store_true", help="remove it although its owner is alive")
    parser.add_argument("--dry-run", action="store_true", help="show what would be removed, and remove nothing")
    quiet = parser.add_mutually_exclusive_group()
    quiet.add_argument("--json", action="store_true", help="write one JSON object, whatever happens")
    quiet.add_argument("--quiet", action="store_true", help="write nothing but errors")
    parser.add_debug()
    return parser


def _deregister(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    # Here, so that the help, which is asked for in haste, loads no registry.
    from registry_drain.cli.deregistration import Deregistration, Request
    from registry_drain.clock import SYSTEM_CLOCK
    from registry_drain.registries.url import open_registry

    request = Request.of(options)
    document.update(service=request.service, is_dry_run=request.is_dry_run, is_forced=request.is_forced)
    registry = open_registry(options.registry, SYSTEM_CLOCK)
    document["registry"] = registry.url
    try:
        return Deregistration(registry, request, output, document, SYSTEM_CLOCK).run()
    finally:
        registry.close()
