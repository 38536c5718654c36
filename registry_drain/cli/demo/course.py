"""The demo's course: the naive side, the drained side, the table, the verdict."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import registry_drain.servers.thrift_server  # noqa: F401 -- first, because it names the extra if Thrift is missing
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import Document, Verdict
from registry_drain.cli.command.output import Output
from registry_drain.cli.command.table import Table, show_table
from registry_drain.cli.demo.instance import Style
from registry_drain.cli.demo.progress import progress
from registry_drain.cli.demo.side import Plan, run_side
from registry_drain.cli.demo.tally import Tally
from registry_drain.clock import SYSTEM_CLOCK
from registry_drain.registries.url import parse_registry_url

_COLUMNS = ("stop", "restarts", "requests", "failed", "p99 ms", "p99 ms during stops", "stop time s", "longest s")


def run(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    """Run both sides and compare."""
    with tempfile.TemporaryDirectory(prefix="registry-drain-demo-") as name:
        directory = Path(name)
        url = options.registry or f"local://{directory / 'registry'}"
        document["registry"] = str(parse_registry_url(url))
        plan = Plan(url, options.instances, options.restarts, options.seconds, directory)
        tallies: dict[Style, Tally] = {}
        for style in Style:
            with progress(style.value, plan.total, output) as show:
                tallies[style] = run_side(plan, style, show, SYSTEM_CLOCK)
            document[style.value] = dataclasses.asdict(tallies[style])
    show_table(_table(tallies), output)
    for style, tally in tallies.items():
        if tally.failures:
            kinds = ", ".join(f"{count} {kind}" for kind, count in tally.failures.items())
            output.say(f"{style.value}: {kinds}")
    for report in tallies[Style.DRAINED].unclean_reports:
        for line in ("an instance that did not stop cleanly said:", *report.splitlines()):
            output.say(line)
    return verdict(tallies[Style.DRAINED])


def verdict(drained: Tally) -> Verdict:
    """Return what the demo proves, by its drained side alone: the naive one is there to compare."""
    if not drained.requests:
        return ExitStatus.FAILED, "the drained side made no requests, so nothing is proven"
    if drained.failed:
        return ExitStatus.FAILED, f"the drained side lost {drained.failed} of {drained.requests} requests"
    if drained.unclean_stops:
        unclean = f"{drained.unclean_stops} of {drained.restarts} drained instances did not stop cleanly"
        return ExitStatus.FAILED, f"no request was lost, but {unclean}"
    return ExitStatus.DONE, (
        f"drained: {drained.restarts} restarts under load, {drained.requests} requests, not one of them failed"
    )


def _table(tallies: dict[Style, Tally]) -> Table:
    rows = [
        [
            style.value,
            str(tally.restarts),
            str(tally.requests),
            str(tally.failed),
            _number(tally.p99, 1000, 1),
            _number(tally.p99_during_stops, 1000, 1),
            _number(tally.stop_median, 1, 2),
            _number(tally.stop_longest, 1, 2),
        ]
        for style, tally in tallies.items()
    ]
    return Table(_COLUMNS, rows, frozenset(_COLUMNS[1:]))


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
