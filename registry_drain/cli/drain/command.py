"""``registry-drain drain`` and ``undrain``: take instances out of rotation without removing them, and put them back.

What they do is in :mod:`registry_drain.cli.drain.rotating`; here are their arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from registry_drain.cli.choosing.options import add_consent, add_observe, add_output, add_selection
from registry_drain.cli.command.arguments import CommandParser
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output

_STATUSES = """\
exit status:
   0  done, and a consistent read shows it (--dry-run: found)
   1  accepted, and a consistent read shows that it is not so; the message says why
   2  the arguments cannot work, several fit and --yes is missing, more than --max, or this registry has no such state
   3  the registry could not be reached, or not in time
   4  no such instance
   7  refused: by the registry, because it was registered anew{last};
      or something that may be meant, too, may not be read: the message names it
 130  interrupted
  of several the worst one: 1, 3, 7, 4, 0
"""
_LAST = ", or as a service's last healthy one (--force)"


def main(arguments: Sequence[str] | None = None, *, program: str = "registry-drain drain") -> int:
    """Run ``drain`` or, if that is the program's last word, ``undrain``, and return its exit status."""
    blank: Document = {
        "registry": None,
        "service": None,
        "is_dry_run": None,
        "is_forced": None,
        "reason": None,
        "candidates": [],
        "results": [],
    }
    return invoke(make_parser(program), _rotate, arguments, blank)


def make_parser(program: str) -> CommandParser:
    """Return what takes the arguments apart."""
    is_drain = not program.endswith("undrain")
    if is_drain:
        parser = CommandParser(
            program,
            "Take instances out of rotation: they stay listed, and callers leave them out until undrain.",
            _STATUSES.format(last=_LAST),
        )
    else:
        parser = CommandParser(program, "Put instances back into rotation.", _STATUSES.format(last=""))
    parser.set_defaults(is_drain=is_drain, reason="", force=False)
    parser.add_registry()
    add_selection(parser)
    add_observe(parser)
    add_consent(parser, force="drain a service's last healthy instance, too" if is_drain else "")
    if is_drain:
        parser.add_argument("--reason", metavar="TEXT", help="why; shown by the registry's own tools, where they can")
    parser.add_argument("--dry-run", action="store_true", help="show what would be changed, and change nothing")
    add_output(parser)
    parser.add_debug()
    return parser


def _rotate(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    # Here, so that the help loads no registry.
    from registry_drain.cli.choosing.finding import opened
    from registry_drain.cli.drain.rotating import Request, Rotating
    from registry_drain.clock import SYSTEM_CLOCK

    request = Request.of(options)
    document.update(
        service=request.selection.service,
        is_dry_run=request.is_dry_run,
        is_forced=request.consent.is_forced if request.is_drain else None,
        reason=request.reason or None,
    )
    with opened(options.registry, SYSTEM_CLOCK) as registry:
        document["registry"] = registry.url
        return Rotating(registry, request, output, document, SYSTEM_CLOCK).run()
