"""What a command writes: results to standard output, complaints to standard error, and never a surprise.

Rules: whatever comes from a registry is other people's text, so control characters are escaped: an id cannot move the
cursor, fake a line or break the promise of one line for each complaint. A reader that goes away (``| head``) is no
error. Standard output that is closed or full never makes a traceback.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping
from typing import TextIO


def printable(text: str) -> str:
    """Return ``text`` as one line that any terminal shows as it is: what is not printable is escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def showable(text: str, stream: TextIO) -> str:
    """Return ``text`` as one line that ``stream`` can write: what its encoding lacks is escaped, too."""
    return _encodable(printable(text), stream)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Output:
    """The standard streams of one command.

    Attributes:
        is_json: whether standard output is for one JSON object alone.
        is_quiet: whether results are not to be written; complaints are.
        problem: why something could not be written; empty if everything was.
    """

    def __init__(self, program: str, *, is_json: bool = False, is_quiet: bool = False) -> None:
        """Write as ``program``."""
        self._program = program
        self.is_json = is_json
        self.is_quiet = is_quiet
        self.problem = ""
        self._is_abandoned = False

    @property
    def is_abandoned(self) -> bool:
        """Whether writing on is of no use: nobody reads standard output any more, or it cannot be written."""
        if self._is_abandoned or self.problem:
            return True
        try:
            poll = select.poll()
            poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told
            return bool(poll.poll(0))
        except (AttributeError, OSError, ValueError):  # closed, or no file at all
            return False

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads standard output."""
        return _is_terminal(sys.stdout)

    @property
    def is_watched(self) -> bool:
        """Whether a person reads standard error and wants to be told how it goes."""
        return _is_terminal(sys.stderr) and not (self.is_quiet or self.is_json)

    def say(self, line: str) -> None:
        """Write one line of the result, unless it was asked for as JSON or not at all."""
        if not (self.is_json or self.is_quiet):
            self.write(f"{printable(line)}\n")

    def document(self, document: Mapping[str, object]) -> None:
        """Write the JSON object, in one line."""
        import json  # here, because the help does without, and it costs as much as the arguments do

        # ASCII, so that no locale and no terminal can spoil it.
        self.write(json.dumps(document) + "\n")

    def write(self, text: str) -> None:
        """Write ``text`` as it is, at once."""
        stream: TextIO | None = sys.stdout
        if self.problem or stream is None:
            return
        try:
            stream.write(text)
            stream.flush()
        except UnicodeEncodeError:
            self.write(_encodable(text, stream))
        except (OSError, ValueError) as error:
            self._give_up(stream, error)

    def flush(self) -> None:
        """Let go of what others (argparse, rich) have written."""
        self.write("")

    def complain(self, line: str) -> None:
        """Write one line to standard error, beginning with the program's name as ``grep`` and its like do."""
        stream: TextIO | None = sys.stderr
        if stream is None:
            return
        try:
            stream.write(f"{self._program}: {showable(line, stream)}\n")
            stream.flush()
        except (OSError, ValueError):  # there is nobody left to complain to
            pass

    def remark(self, line: str) -> None:
        """Tell the person at a terminal what takes so long; scripts and logs are spared."""
        if self.is_watched:
            self.complain(line)

    def _give_up(self, stream: TextIO, error: Exception) -> None:
        self._is_abandoned = isinstance(error, BrokenPipeError)
        self.problem = "" if self._is_abandoned else f"standard output cannot be written: {error}"
        # The interpreter flushes once more when it exits, and would complain in its own words and change the status.
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
