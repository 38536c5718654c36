"""``registry-drain demo``: its arguments, its course, and its verdict."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

from registry_drain.cli.choosing.options import add_output
from registry_drain.cli.command.arguments import CommandParser, count_from, positive_seconds
from registry_drain.cli.command.invocation import Document, Verdict, invoke
from registry_drain.cli.command.output import Output

_EPILOG = """\
Two fleets of the same Thrift service, one after the other, under the same load: clients that
follow the registry, most of them over connections that they keep. The first fleet's instances
exit on SIGTERM as most services do; the second fleet's are drained. Every request counts, none
is retried.

exit status: 0 the drained side lost nothing; 1 it lost a request, made none, or an instance did not stop cleanly;
2 wrong arguments, or an extra is missing; 3 registry unreachable; 7 refused; 130 interrupted
"""


def main(arguments: Sequence[str] | None = None, *, program: str = "registry-drain demo") -> int:
    """Run the command and return its exit status."""
    return invoke(make_parser(program), _demo, arguments, {"registry": None, "naive": None, "drained": None})


def make_parser(program: str) -> CommandParser:
    """Return what takes the arguments apart."""
    parser = CommandParser(program, "Restart a fleet under load: stopped the naive way, and drained.", _EPILOG)
    parser.add_argument(
        "--registry", metavar="URL", help="where the fleets are listed (default: a directory of the demo's own)"
    )
    parser.add_argument(
        "--instances", type=count_from(2, 20), default=3, metavar="N", help="at a time, 2 to 20 (default: 3)"
    )
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument(
        "--restarts", type=count_from(1, 1000), default=3, metavar="N", help="of each instance (default: 3)"
    )
    how_long.add_argument(
        "--seconds", type=positive_seconds, metavar="S", help="restart for so long on each side, instead of counting"
    )
    add_output(parser)
    parser.add_debug()
    return parser


def _demo(options: argparse.Namespace, output: Output, document: Document) -> Verdict:
    # Here, so that the help loads neither Thrift nor a registry. Whoever lacks Thrift is told which extra brings it.
    from registry_drain.cli.demo.course import run

    with _ended_by_sigterm():
        return run(options, output, document)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Leave on SIGTERM as on Ctrl-C, through every clean-up. Signals belong to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
