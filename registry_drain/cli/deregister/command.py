"""``deregister``: take instances out of a cluster, prove that they are gone, and see whether they come back.

What it does is in :mod:`registry_drain.cli.deregister.deregistration`; here are its arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from registry_drain.cli.choosing.options import add_agent, add_consent, add_observe, add_output, add_selection
from registry_drain.cli.command.arguments import CommandParser, some_seconds
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output

_EPILOG = """\
exit status:
   0  gone, and proven to be (--dry-run: found)
   2  the arguments cannot work, several fit and --yes is missing, or more than --max; nothing was done
   3  the registry could not be reached, or not in time; the message says whether anything was removed
   4  no such instance
   5  it was gone and came back
   6  removed, but we may not look whether it is gone
   7  refused: by the registry, because a live owner has it, or as a service's last healthy one; see --force;
      or something that may be meant, too, may not be read: the message names it
 130  interrupted
  of several the worst one: 3, 7, 5, 6, 4, 0

examples:
  deregister consul://127.0.0.1:8500 --service calculator --address 10.0.0.7:9090 --watch-back 30
  deregister zookeeper://127.0.0.1/services --node 10.0.0.7 --dry-run
  deregister zookeeper://127.0.0.1/services --node 10.0.0.7 --yes --max 12
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
        "companions": [],
        "results": [],
    }
    return invoke(make_parser(program), _deregister, arguments, blank)


def make_parser(program: str) -> CommandParser:
    """Return what takes the arguments apart."""
    parser = CommandParser(program, "Remove instances from a registry, and prove that they are gone.", _EPILOG)
    parser.add_registry()
    add_agent(parser)
    add_selection(parser)
    add_observe(parser)
    add_consent(
        parser,
        force="remove it although its owner is alive, a system manages it, or it is its service's last healthy one",
    )
    parser.add_argument(
        "--watch-back",
        type=some_seconds,
        default=0.0,
        metavar="S",
        help="then look for this many seconds whether somebody registers it again, and say who",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be removed, and remove nothing")
    add_output(parser)
    parser.add_debug()
    return parser


def _deregister(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    # Here, so that the help, which is asked for in haste, loads no registry.
    from registry_drain.cli.choosing.finding import opened
    from registry_drain.cli.deregister.deregistration import Deregistration, Request
    from registry_drain.clock import SYSTEM_CLOCK

    request = Request.of(options)
    document.update(service=request.selection.service, is_dry_run=request.is_dry_run, is_forced=request.is_forced)
    with opened(options.registry, SYSTEM_CLOCK, options.agent) as registry:
        document["registry"] = registry.url
        return Deregistration(registry, request, output, document, SYSTEM_CLOCK).run()
