"""Options that several commands have: which instances are meant, and what the operator agrees to.

Apart from what they become (``selection``, ``consent``), so that a help loads neither.
"""

from __future__ import annotations

import argparse

from registry_drain.cli.command.arguments import count_from

_MOST = 1_000_000


def add_selection(parser: argparse._ActionsContainer, *, with_all: bool = True) -> None:
    """Add the options that say which instances are meant; ``with_all`` for commands that change something."""
    which = parser.add_argument_group("which instances (all that is given must fit)")
    which.add_argument("--service", metavar="NAME", help="listed under this name (default: any service)")
    which.add_argument("--id", metavar="ID", help="its id, or where it stands, as `registry-drain list` shows them")
    which.add_argument(
        "--address", metavar="HOST:PORT", help="reached there, be it by a further endpoint; no name is looked up"
    )
    which.add_argument("--node", metavar="NAME", help="on this node or, where the registry has none, at this host")
    which.add_argument("--tag", action="append", default=[], metavar="TAG", help="has this tag; may be repeated")
    which.add_argument(
        "--meta", action="append", default=[], metavar="KEY=VALUE", help="has this metadata; may be repeated"
    )
    which.add_argument("--all-unhealthy", action="store_true", help="its health is critical, or its owner is dead")
    which.add_argument(
        "--critical-for",
        type=duration_given,
        metavar="TIME",
        help="seen critical for this long (90s, 10m, 2h) by runs on this machine",
    )
    if with_all:
        which.add_argument("--all", action="store_true", help="every instance of --service")


def duration_given(text: str) -> float:
    """Convert an argument to seconds: see :func:`registry_drain.cli.command.duration.duration`."""
    from registry_drain.cli.command.duration import duration  # here, because hardly anybody gives one

    return duration(text)


def add_consent(
    parser: argparse._ActionsContainer,
    *,
    yes: str = "do it to all that fit, if they are several",
    force: str = "",
) -> None:
    """Add ``--yes`` and ``--max``, and ``--force`` if its help is given, to a parser or a group of one."""
    parser.add_argument("--yes", action="store_true", help=yes)
    parser.add_argument(
        "--max", type=count_from(1, _MOST), metavar="N", help="do nothing if more than N fit (default: no limit)"
    )
    if force:
        parser.add_argument("--force", action="store_true", help=force)


def add_agent(parser: argparse._ActionsContainer) -> None:
    """Add ``--agent``."""
    parser.add_argument(
        "--agent", metavar="HOST:PORT", help="Consul: the agent that owns it, if it is not found itself"
    )


def add_observe(parser: argparse._ActionsContainer) -> None:
    """Add ``--observe``."""
    parser.add_argument(
        "--observe", action="store_true", help="with --critical-for: look until it is proven, for that long at most"
    )


def add_output(parser: argparse._ActionsContainer) -> None:
    """Add ``--json`` and ``--quiet``."""
    quiet = parser.add_mutually_exclusive_group()
    quiet.add_argument("--json", action="store_true", help="write one JSON object, whatever happens")
    quiet.add_argument("--quiet", action="store_true", help="write nothing but errors")
