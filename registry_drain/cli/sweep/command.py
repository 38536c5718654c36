"""``registry-drain sweep``: its arguments. What it does is in :mod:`registry_drain.cli.sweep.sweeping`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from registry_drain.cli.choosing.options import add_consent, add_output, duration_given
from registry_drain.cli.command.arguments import CommandParser, count_from, positive_seconds, some_seconds
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output

_EPILOG = """\
exit status:
   0  swept, or shown what would be; be it nothing
   2  the arguments cannot work, or more than --max were found; nothing was removed
   3  the registry could not be reached, or not in time; the report says what was removed
   5  a ghost was removed and came back
   6  removed, but we may not look whether it is gone
   7  refused: by the registry, or because one is alive after all; or something may not be read that may be a ghost
 130  interrupted; another sweep finishes

example:
  registry-drain sweep consul://127.0.0.1:8500 --dead-agents --critical-for 10m
  registry-drain sweep consul://127.0.0.1:8500 --dead-agents --critical-for 10m --yes --max 20
"""


def main(arguments: Sequence[str] | None = None, *, program: str = "registry-drain sweep") -> int:
    """Run the command and return its exit status."""
    blank: Document = {
        "registry": None,
        "service": None,
        "is_dry_run": None,
        "is_forced": None,
        "probed": None,
        "ghosts": [],
        "leftovers": [],
    }
    return invoke(make_parser(program), _sweep, arguments, blank)


def make_parser(program: str) -> CommandParser:
    """Return what takes the arguments apart."""
    made = CommandParser(
        program,
        "Find instances that are dead, and say how that is known; with --yes remove them, and prove it.",
        _EPILOG,
    )
    made.add_registry()
    made.add_argument("--service", metavar="NAME", help="only this service (default: all)")
    dead = made.add_argument_group("what counts as dead (default: --dead-agents --unreachable)")
    dead.add_argument(
        "--critical-for",
        type=duration_given,
        metavar="TIME",
        help="seen critical for this long (90s, 10m, 2h) by runs on this machine",
    )
    dead.add_argument("--observe", action="store_true", help="with --critical-for: wait, and look for that long")
    dead.add_argument("--dead-agents", action="store_true", help="its agent is dead, or the process that kept it")
    dead.add_argument(
        "--unreachable", action="store_true", help="nobody is known to keep it, and its address refuses connections"
    )
    dead.add_argument("--no-answer", action="store_true", help="... or does not answer, which proves less")
    probing = made.add_argument_group("how addresses are tried, from this host")
    probing.add_argument("--tries", type=count_from(1, 100), default=3, metavar="N", help="(default: %(default)s)")
    probing.add_argument(
        "--try-every", type=some_seconds, default=2.0, metavar="S", help="seconds between tries (default: %(default)g)"
    )
    probing.add_argument(
        "--connect-timeout",
        type=positive_seconds,
        default=1.0,
        metavar="S",
        help="how long one may take (default: %(default)g)",
    )
    probing.add_argument("--loopback", action="store_true", help="try 127.0.0.1, too: every instance is on this host")
    removing = made.add_argument_group("what is done")
    add_consent(
        removing,
        yes="remove what was found (default: show it)",
        force="remove even the last instance of a service that looks healthy to the registry",
    )
    removing.add_argument(
        "--watch-back",
        type=some_seconds,
        default=0.0,
        metavar="S",
        help="then look for this many seconds whether somebody registers any of them again",
    )
    add_output(made)
    made.add_debug()
    return made


def _sweep(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    # Here, so that the help loads no registry.
    from registry_drain.cli.choosing.consent import Consent
    from registry_drain.cli.choosing.critical_since import CriticalSince
    from registry_drain.cli.choosing.finding import opened
    from registry_drain.cli.sweep.evidence import Finders
    from registry_drain.cli.sweep.probes import ProbePlan
    from registry_drain.cli.sweep.sweeping import Request, Sweep
    from registry_drain.clock import SYSTEM_CLOCK
    from registry_drain.errors import ConfigurationError

    if options.service == "":
        raise ConfigurationError("--service is empty: leave it out to sweep all")
    if options.observe and options.critical_for is None:
        raise ConfigurationError("--observe is for --critical-for TIME: say how long")
    asked = options.critical_for is not None or options.dead_agents or options.unreachable or options.no_answer
    request = Request(
        finders=Finders(
            critical_for=options.critical_for,
            dead_agents=options.dead_agents or not asked,
            refused=options.unreachable or options.no_answer or not asked,
            no_answer=options.no_answer,
        ),
        consent=Consent.of(options),
        plan=ProbePlan(
            tries=options.tries,
            every=options.try_every,
            connect_timeout=options.connect_timeout,
            with_loopback=options.loopback,
        ),
        service=options.service,
        timeout=options.timeout,
        observes=options.observe,
        watch_back=options.watch_back,
    )
    document.update(service=options.service, is_dry_run=not options.yes, is_forced=options.force)
    with opened(options.registry, SYSTEM_CLOCK) as registry:
        document["registry"] = registry.url
        since = CriticalSince(None) if options.critical_for is None else CriticalSince.of(registry.url)
        return Sweep(registry, request, since, output, document, SYSTEM_CLOCK).run()
