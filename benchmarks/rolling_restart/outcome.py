"""What came of one subject's restarts, and the table of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.rolling_restart.fleet import Stop
from benchmarks.rolling_restart.load import FOLLOWING, IGNORING, Sample


@dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
        subject: the server.
        how: ``own`` or ``drained``.
        samples: every request.
        stops: every stop.
        ignoring_connections: how many connections were made by clients that ignore the registry.
        ignoring_limit: the share of them that may fail when drained.
    """

    subject: str
    how: str
    samples: Sequence[Sample]
    stops: Sequence[Stop]
    ignoring_connections: int
    ignoring_limit: float

    def failed(self, kind: str) -> int:
        """How many requests of one kind of client failed."""
        return sum(1 for sample in self.samples if sample.kind == kind and sample.failure)

    @property
    def ok(self) -> int:
        """How many requests were answered."""
        return sum(1 for sample in self.samples if not sample.failure)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of what clients that follow the registry waited for an answer during the stops."""
        during = sorted(
            sample.seconds
            for sample in self.samples
            if sample.kind == FOLLOWING
            and not sample.failure
            and any(stop.began_at <= sample.began_at <= stop.ended_at for stop in self.stops)
        )
        return during[len(during) * 99 // 100] * 1000 if during else float("nan")

    @property
    def stop_s(self) -> float:
        """The median stop, in seconds."""
        taken = sorted(stop.ended_at - stop.began_at for stop in self.stops)
        return taken[len(taken) // 2]

    @property
    def remarks(self) -> str:
        """Exit statuses other than 0, orphans, and the kinds of failures."""
        said = [f"{count} x {failure}" for failure, count in self._failures().most_common()]
        statuses = Counter(stop.status for stop in self.stops if stop.status)
        said += [f"{count} x exit status {status}" for status, count in statuses.items()]
        orphans = sum(stop.has_orphans for stop in self.stops)
        return ", ".join([*said, f"{orphans} x orphans"] if orphans else said)

    def _failures(self) -> Counter[str]:
        return Counter(sample.failure for sample in self.samples if sample.failure)

    @property
    def is_kept(self) -> bool:
        """Whether a drained subject keeps what is promised: see the acceptance in ``__main__``."""
        allowed = self.ignoring_limit * self.ignoring_connections
        return self.failed(FOLLOWING) == 0 and self.failed(IGNORING) <= allowed

    def as_dict(self) -> dict[str, object]:
        """Return the row for a machine."""
        return {
            "server": self.subject,
            "how": self.how,
            "ok": self.ok,
            "failed_following": self.failed(FOLLOWING),
            "failed_ignoring": self.failed(IGNORING),
            "ignoring_connections": self.ignoring_connections,
            "p99_ms": round(self.p99_ms, 1),
            "stops": len(self.stops),
            "stop_s": round(self.stop_s, 2),
            "remarks": self.remarks,
        }


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """Return the table for a terminal."""
    table = Table(title="rolling restarts under load, by SIGTERM")
    table.add_column("server", no_wrap=True)
    table.add_column("stopped", no_wrap=True)
    for column in ("ok", "failed", "... ignoring", "p99 ms", "stop s"):
        table.add_column(column, justify="right")
    table.add_column("remarks")
    for each in outcomes:
        table.add_row(
            each.subject,
            each.how,
            str(each.ok),
            str(each.failed(FOLLOWING)),
            f"{each.failed(IGNORING)} of {each.ignoring_connections}",
            f"{each.p99_ms:.0f}",
            f"{each.stop_s:.2f}",
            each.remarks,
        )
    return table
