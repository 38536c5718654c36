"""What the demo shows while it works: a bar by rich at a terminal, and a line for each restart elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from registry_drain.cli.command.output import Output

Show = Callable[[int, int, int], None]
"""Told of restarts, requests and failures so far."""


@contextlib.contextmanager
def progress(title: str, total: int | None, output: Output) -> Iterator[Show]:
    """Give the function that shows how far one side, called ``title``, has come."""
    bar = _rich_bar(title, total) if output.is_terminal and not (output.is_json or output.is_quiet) else None
    if bar is not None:
        with bar as show:
            yield show
        return
    output.say(f"{title}: starting")

    def say(restarts: int, requests: int, failed: int) -> None:
        of_total = "" if total is None else f" of {total}"
        output.say(f"{title}: restart {restarts}{of_total}, {requests} requests, {failed} failed")

    yield say


def _rich_bar(title: str, total: int | None) -> contextlib.AbstractContextManager[Show] | None:
    try:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        return None

    @contextlib.contextmanager
    def shown() -> Iterator[Show]:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
        ) as bar:
            task = bar.add_task(title, total=total, counts="starting")

            def show(restarts: int, requests: int, failed: int) -> None:
                counts = f"{restarts} restarts, {requests} requests, {failed} failed"
                bar.update(task, completed=restarts, counts=counts)

            yield show

    return shown()
