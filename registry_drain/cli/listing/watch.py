"""``registry-drain list --watch``: the list as it changes, until Ctrl-C.

Theory of operation: the registry is read again every second, because a watch shows healthy instances only, and an
operator wants to see the others most of all. Where one service is followed, the registry's own watch says sooner when
to look. What differs from the look before is told: at a terminal as a table that is drawn anew, elsewhere as a line for
each change, with ``--json`` as an object for each.

Rules: while the registry is out of reach the last list stands, and that is said once; so is that it is back. A reader
that goes away ends it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone

from registry_drain.cli.choosing.finding import Found, find
from registry_drain.cli.choosing.selection import Selection, key_of
from registry_drain.cli.command.entries import entry_document, entry_table
from registry_drain.cli.command.exit_status import ExitStatus
from registry_drain.cli.command.invocation import SCHEMA_VERSION, Document, Verdict
from registry_drain.cli.command.output import Output, printable
from registry_drain.cli.command.table import compact
from registry_drain.clock import Clock, Deadline
from registry_drain.errors import RegistryDrainError, RegistryUnavailableError
from registry_drain.registries.base import Registry, RegistryEntry

LOOK_EVERY = 1.0
"""Seconds between two reads when nothing calls for one sooner."""
_REST = 0.1
"""Seconds without a read after each one: changes come in bursts, and nobody should hammer a registry in trouble."""
_WATCH_TIMEOUT = 5.0
"""Seconds for beginning the registry's own watch, without which it goes on all the same."""

Key = tuple[str, str, str]
Draw = Callable[[Sequence[RegistryEntry], float, str], None]
"""Draws a list as of a time (UNIX seconds), and what is wrong, if anything is."""


class _Sink:
    """Where changes go. By default a line for each: ``+``, ``-`` or ``~``, the time, and the columns of ``list``."""

    def __init__(self, output: Output, registry_url: str) -> None:
        self._output = output
        self._url = registry_url

    def begin(self) -> None:
        self._output.write("\t".join(("change", "time", *entry_table((), 0.0).columns)) + "\n")

    def change(self, event: str, entry: RegistryEntry, before: RegistryEntry | None, at: float) -> None:
        del before
        sign = {"added": "+", "removed": "-", "changed": "~"}[event]
        when = datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        [row] = entry_table((entry,), at).rows
        self._output.write("\t".join(printable(cell) for cell in (sign, when, *row)) + "\n")

    def reach(self, error: RegistryDrainError | None, at: float) -> None:
        """Tell of an outage (an error) or of its end (None)."""
        del at
        self._output.complain(f"{error}; still looking" if error else f"{self._url} is back")

    def show(self, entries: Sequence[RegistryEntry], at: float) -> None:
        """Show the list as a whole, after each look."""


class _JsonSink(_Sink):
    """An object for each change."""

    def begin(self) -> None:
        pass

    def change(self, event: str, entry: RegistryEntry, before: RegistryEntry | None, at: float) -> None:
        self._event(event, at, entry, before, "")

    def reach(self, error: RegistryDrainError | None, at: float) -> None:
        super().reach(error, at)
        self._event("unreachable" if error else "reachable", at, None, None, str(error or ""))

    def _event(
        self, event: str, at: float, entry: RegistryEntry | None, before: RegistryEntry | None, message: str
    ) -> None:
        self._output.document(
            {
                "schema_version": SCHEMA_VERSION,
                "command": "list",
                "event": event,
                "at": round(at, 3),
                "instance": None if entry is None else entry_document(entry),
                "before": None if before is None else entry_document(before),
                "message": message,
            }
        )


class _QuietSink(_Sink):
    """Nothing but outages."""

    def begin(self) -> None:
        pass

    def change(self, event: str, entry: RegistryEntry, before: RegistryEntry | None, at: float) -> None:
        pass


class _LiveSink(_Sink):
    """A table that is drawn anew."""

    def __init__(self, output: Output, registry_url: str, draw: Draw) -> None:
        super().__init__(output, registry_url)
        self._draw = draw
        self._outage = ""

    def begin(self) -> None:
        pass

    def change(self, event: str, entry: RegistryEntry, before: RegistryEntry | None, at: float) -> None:
        pass  # shown with all the others

    def reach(self, error: RegistryDrainError | None, at: float) -> None:
        del at
        self._outage = str(error or "")

    def show(self, entries: Sequence[RegistryEntry], at: float) -> None:
        self._draw(entries, at, self._outage)


class ListWatch:
    """One run of the command. Fills in ``document`` with the last list."""

    def __init__(
        self,
        registry: Registry,
        selection: Selection,
        timeout: float,
        output: Output,
        document: Document,
        clock: Clock,
    ) -> None:
        """Send nothing yet."""
        self._registry = registry
        self._selection = selection
        self._timeout = timeout
        self._output = output
        self._document = document
        self._clock = clock
        self._listed: dict[Key, RegistryEntry] = {}
        self._changes = 0
        self._is_out_of_reach = False

    def run(self) -> Verdict:
        """Follow until Ctrl-C, or until the reader goes away.

        Raises:
            RegistryError: the first look failed for as long as ``timeout``; or a later one was refused.
        """
        wake = threading.Event()
        started_at = self._clock.now()
        try:
            first = self._look(Deadline.after(self._timeout, self._clock))
            with self._sink() as sink, self._called(wake):
                sink.begin()
                self._tell(first.chosen, sink)
                while not self._output.is_abandoned:
                    self._clock.sleep(_REST)
                    Deadline.after(LOOK_EVERY, self._clock).wait(wake)
                    wake.clear()
                    self._look_again(sink)
        except KeyboardInterrupt:
            followed = self._clock.now() - started_at
            return ExitStatus.INTERRUPTED, f"followed for {followed:.0f} s, {self._changes} changes"
        finally:
            self._document["instances"] = [entry_document(entry) for entry in self._listed.values()]
        return ExitStatus.DONE, ""

    def _look(self, deadline: Deadline) -> Found:
        return find(self._registry, self._selection, deadline, self._output)

    def _look_again(self, sink: _Sink) -> None:
        deadline = Deadline.after(self._timeout, self._clock)
        try:
            found: Sequence[RegistryEntry]
            if self._selection.critical_for is None:
                # Read bare: the commands' patience would keep an outage from being told.
                found = self._selection.select(self._registry.entries(self._selection.service, deadline))
            else:
                found = self._look(deadline).chosen
        except RegistryUnavailableError as error:
            if not self._is_out_of_reach:
                self._is_out_of_reach = True
                sink.reach(error, self._clock.unix_time())
            sink.show(list(self._listed.values()), self._clock.unix_time())
            return
        if self._is_out_of_reach:
            self._is_out_of_reach = False
            sink.reach(None, self._clock.unix_time())
        self._tell(found, sink)

    def _tell(self, entries: Sequence[RegistryEntry], sink: _Sink) -> None:
        now = self._clock.unix_time()
        before, self._listed = self._listed, {key_of(entry): entry for entry in entries}
        for key, entry in before.items():
            if key not in self._listed:
                self._changes += 1
                sink.change("removed", entry, None, now)
        for key, entry in self._listed.items():
            if key not in before:
                self._changes += 1
                sink.change("added", entry, None, now)
            elif _told(entry) != _told(before[key]):
                self._changes += 1
                sink.change("changed", entry, before[key], now)
        sink.show(entries, now)

    @contextlib.contextmanager
    def _called(self, wake: threading.Event) -> Iterator[None]:
        """Have the registry's own watch set ``wake``; where it cannot, looking every second has to do."""
        if self._selection.service is None:
            yield
            return
        deadline = Deadline.after(_WATCH_TIMEOUT, self._clock)
        try:
            watch = self._registry.watch(self._selection.service, deadline, lambda _instances: wake.set())
        except RegistryDrainError:
            yield
            return
        try:
            yield
        finally:
            watch.close()

    @contextlib.contextmanager
    def _sink(self) -> Iterator[_Sink]:
        output, url = self._output, self._registry.url
        if output.is_json:
            yield _JsonSink(output, url)
        elif output.is_quiet:
            yield _QuietSink(output, url)
        elif not output.is_terminal:
            yield _Sink(output, url)
        else:
            try:
                import rich.live  # noqa: F401 -- whether it is there
            except ModuleNotFoundError:
                yield _Sink(output, url)
            else:
                with _live(url) as draw:
                    yield _LiveSink(output, url, draw)


@contextlib.contextmanager
def _live(url: str) -> Iterator[Draw]:
    """Give what draws the table in the place of the one before."""
    from rich.console import Group
    from rich.live import Live

    from registry_drain.cli.command.table import rich_table, rich_text

    with Live(auto_refresh=False) as live:

        def draw(entries: Sequence[RegistryEntry], at: float, outage: str) -> None:
            when = datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S UTC")
            head = f"{url}  {len(entries)} instances  {when}"
            # What does not fit the window would be cut off by rich, but only after it was rendered, each time.
            table = rich_table(compact(entry_table(entries[: live.console.height], at)))
            problem = f"out of reach, as it was last seen: {outage}" if outage else ""
            live.update(Group(rich_text(head), table, rich_text(problem, "red")), refresh=True)

        yield draw


def _told(entry: RegistryEntry) -> RegistryEntry:
    """Return what a change of counts: what a check says in passing does not, and neither does its index."""
    checks = tuple(dataclasses.replace(check, output="", version="") for check in entry.checks)
    return dataclasses.replace(entry, checks=checks)
