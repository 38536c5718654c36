"""Arguments: argparse, but a mistake is one line, and options cannot be abbreviated (a script must not break later)."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from registry_drain.errors import ConfigurationError

_WIDEST_HELP = 120
LONGEST_WAIT = 86_400.0
"""Seconds. Nobody waits longer than a day for one instance: it is a typing error, or milliseconds."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`ConfigurationError`."""

    def __init__(self, program: str, description: str, epilog: str = "") -> None:
        """Make the parser of ``program``; the epilog is printed as it stands."""
        super().__init__(
            prog=program,
            description=description,
            epilog=epilog,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise; the usage is for ``--help``, not for somebody who made a typing error."""
        raise ConfigurationError(f"{message}; see {self.prog} --help")

    def add_debug(self) -> None:
        """Add ``--debug``, which every command has."""
        self.add_argument("--debug", action="store_true", help="show log lines, and the traceback of an error")

    def add_registry(self) -> None:
        """Add the registry's URL, and how long to keep trying to reach it."""
        self.add_argument(
            "registry",
            metavar="REGISTRY_URL",
            help="consul://HOST:PORT, zookeeper://HOST:PORT,HOST:PORT/base/path or local:///directory",
        )
        self.add_argument(
            "--timeout",
            type=positive_seconds,
            default=10.0,
            metavar="S",
            help="keep trying for this many seconds in all (default: %(default)g)",
        )


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Asks the terminal for its width by itself: argparse's way imports every archive format of the library."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(_columns(), _WIDEST_HELP) - 2)


def _columns() -> int:
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit():
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (AttributeError, OSError, ValueError):  # closed, or no terminal
        return 80


def positive_seconds(text: str) -> float:
    """Convert an argument to seconds, more than none."""
    seconds = some_seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError("0 seconds are no time at all")
    return seconds


def some_seconds(text: str) -> float:
    """Convert an argument to seconds, none included."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_WAIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {LONGEST_WAIT:g}")
    return seconds


def count_from(least: int, most: int) -> Callable[[str], int]:
    """Return what converts an argument to a whole number between ``least`` and ``most``."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not least <= int(text[:9]) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return convert
