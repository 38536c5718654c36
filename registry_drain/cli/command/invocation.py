"""One run of a command: arguments in; one exit status, at most one complaint, and with ``--json`` one object out.

Rules: whatever goes wrong ends as one line on standard error that says what to do, never as a traceback, a bug of
ours included (``--debug`` shows it). With ``--json`` standard output holds exactly one object, on failures too. A
reader of the output that goes away changes nothing of the exit status, which says what became of the instance.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from registry_drain.cli.command.arguments import CommandParser
from registry_drain.cli.command.exit_status import ExitStatus, status_of_error
from registry_drain.cli.command.output import Output
from registry_drain.errors import ConfigurationError, RegistryDrainError

SCHEMA_VERSION = 1
"""Of the JSON objects. Members may be added under the same number; one that changes or goes raises it."""

Document = dict[str, object]
Verdict = tuple[ExitStatus, str]
"""How a command ended, and the line that says so: a result if DONE, else a complaint."""
Action = Callable[[argparse.Namespace, Output, Document], Verdict]
"""A command: does what the arguments say, and fills in the document as it learns more."""


def invoke(
    parser: CommandParser, action: Action, arguments: Sequence[str] | None, blank: Document | None = None
) -> int:
    """Run a command and return its exit status; never raises, but for ``SystemExit`` after ``--help``.

    Args:
        parser: takes the arguments apart.
        action: the command.
        arguments: those of the process by default.
        blank: the command's own members of the JSON object, with the values they have until the action knows better.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Looked for by hand, because a mistake in the arguments is to be told in JSON too.
    output = Output(parser.prog, is_json="--json" in words, is_quiet="--quiet" in words)
    is_debug = "--debug" in words
    document: Document = {
        "schema_version": SCHEMA_VERSION,
        "command": parser.prog.split()[-1],
        "status": None,
        "outcome": None,
        "message": "",
        **(blank or {}),
    }
    status, message = _verdict(parser, action, words, output, document, is_debug=is_debug)
    document.update(status=int(status), outcome=status.word, message=message)
    if output.is_json:
        output.document(document)
    elif message and status is ExitStatus.DONE:
        output.say(message)
    if status is not ExitStatus.DONE:
        output.complain(message)
    output.flush()
    if output.problem and status is ExitStatus.DONE:
        status = ExitStatus.FAILED
        output.complain(f"{output.problem}; otherwise: {message or 'done'}")
    return int(status)


def _verdict(
    parser: CommandParser, action: Action, words: list[str], output: Output, document: Document, *, is_debug: bool
) -> Verdict:
    try:
        try:
            _require_text(words)
            options = parser.parse_args(words)
        except SystemExit:  # --help or --version, which is written already
            output.flush()
            if output.problem:
                return ExitStatus.FAILED, output.problem
            raise
        with _own_process(is_debug=is_debug):
            return action(options, output, document)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED, "interrupted"
    except RegistryDrainError as error:
        if is_debug:
            _show_traceback()
        return status_of_error(error), str(error)
    except Exception as error:  # noqa: BLE001 -- a traceback helps nobody at night; --debug has it
        if is_debug:
            _show_traceback()
        hint = "" if is_debug else "; --debug shows where"
        return ExitStatus.INTERNAL_ERROR, f"internal error: {type(error).__name__}: {error}{hint}"


def _require_text(words: Sequence[str]) -> None:
    """Raise unless all of ``words`` can be sent: Python shows bytes of argv that are not UTF-8 as lone surrogates."""
    for word in words:
        # A registry's URL says how such bytes are written there.
        if "://" not in word and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise ConfigurationError(f"argument {word!r} holds bytes that are not UTF-8: what is registered is UTF-8")


def _show_traceback() -> None:
    import traceback

    traceback.print_exc()


@contextlib.contextmanager
def _own_process(*, is_debug: bool) -> Iterator[None]:
    """Keep log lines and the tracebacks of client libraries' threads off standard error, or show them all.

    INFO at most from others: client libraries log whole requests, credentials included, below that.
    """
    import logging

    root, ours = logging.getLogger(), logging.getLogger("registry_drain")
    handler: logging.Handler = logging.StreamHandler() if is_debug else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)8.0f ms %(levelname)s %(name)s: %(message)s"))
    levels = root.level, ours.level
    hook = threading.excepthook
    root.addHandler(handler)
    if is_debug:
        root.setLevel(logging.INFO)
        ours.setLevel(logging.DEBUG)
    else:
        threading.excepthook = lambda _crash: None
    try:
        yield
    finally:
        threading.excepthook = hook
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        root.removeHandler(handler)
