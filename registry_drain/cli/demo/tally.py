"""What one side of the demo came to, in numbers."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from registry_drain.cli.demo.load import Sample


@dataclass(frozen=True, slots=True)
class Stop:
    """One instance's stop: from SIGTERM to the end of the process, on the demo's clock, its exit status and report."""

    began_at: float
    ended_at: float
    exit_status: int
    report: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.began_at


@dataclass(frozen=True, slots=True)
class Tally:
    """One side. Times in seconds; those that nothing was measured for are None.

    Attributes:
        restarts: how many instances were stopped and replaced.
        requests: all that were made.
        failed: those that got no answer or a wrong one.
        failures: how many of each kind.
        p99: of the requests that succeeded.
        p99_during_stops: of those that succeeded while an instance was stopping.
        stop_median: from SIGTERM to the end of the process.
        stop_longest: the same.
        unclean_stops: processes that exited with a status other than 0.
        unclean_reports: what each of them said of its stop.
    """

    restarts: int
    requests: int
    failed: int
    failures: dict[str, int]
    p99: float | None
    p99_during_stops: float | None
    stop_median: float | None
    stop_longest: float | None
    unclean_stops: int
    unclean_reports: tuple[str, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], stops: Sequence[Stop]) -> Tally:
        """Count."""
        answered = [sample for sample in samples if not sample.failure]
        kinds = collections.Counter(sample.failure for sample in samples if sample.failure)
        took = [stop.seconds for stop in stops]
        return cls(
            restarts=len(stops),
            requests=len(samples),
            failed=len(samples) - len(answered),
            failures=dict(kinds.most_common()),
            p99=percentile((sample.seconds for sample in answered), 99),
            p99_during_stops=percentile((sample.seconds for sample in answered if _is_during(sample, stops)), 99),
            stop_median=statistics.median(took) if took else None,
            stop_longest=max(took, default=None),
            unclean_stops=sum(1 for stop in stops if stop.exit_status != 0),
            unclean_reports=tuple(stop.report for stop in stops if stop.exit_status != 0),
        )


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the smallest value that at least ``percent`` of all do not exceed (the nearest rank); None of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)] if ordered else None


def _is_during(sample: Sample, stops: Sequence[Stop]) -> bool:
    return any(sample.began_at < stop.ended_at and sample.began_at + sample.seconds > stop.began_at for stop in stops)
