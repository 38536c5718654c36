"""How long a connection may last, so that clients which ignore the registry leave in time.

Theory of operation: the one thing that makes *every* gRPC client leave a server without losing a call is a GOAWAY that
comes while the server still serves. ``server.stop()`` sends it too late: what the client sends before it has read it is
cancelled (grpc/grpc#41785). ``grpc.max_connection_age_ms`` sends it in time, to each connection at its age (spread by a
tenth, so that the reconnects do not stampede), and goes on serving the calls that cross it. Once the listener is closed
nobody comes back. So the age has to be shorter than the drain, with room for the last calls.

Sources: gRFC A9 (server-side connection management), ``grpc/impl/channel_arg_names.h``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from registry_drain.errors import ConfigurationError

AGE = "grpc.max_connection_age_ms"
AGE_GRACE = "grpc.max_connection_age_grace_ms"

JITTER = 1.1
"""The C core lengthens the age by up to a tenth."""

_SHARE = 0.5
"""Of the drain, for clients to leave in; the rest is for the calls that they have made last."""

_PARTS = ("deregister", "ceiling", "closing", "notify", "margin")

Options = Iterable[tuple[str, Any]]


class Budget(Protocol):
    """What is asked of a :class:`registry_drain.StopBudget`."""

    @property
    def grace_period(self) -> float:
        """Seconds of the whole stop."""
        ...

    def part(self, name: str) -> float:
        """Return the seconds of one part."""
        ...


def connection_age_options(budget: Budget, age: float | None = None) -> list[tuple[str, int]]:
    """Return the options for ``grpc.server(..., options=...)`` that fit ``budget``; give them to the adapter as well.

    No ``max_connection_age_grace`` is among them: calls may then take as long as they need, and the drain cuts off.

    Args:
        budget: the stop's.
        age: seconds; None: half of what the budget leaves for the drain at least (4.3 s of a stop of 30 s).

    Raises:
        ConfigurationError: ``age`` does not fit.
    """
    longest = _drain_of(budget) * _SHARE / JITTER
    seconds = longest if age is None else age
    if not 0 < seconds <= longest:
        raise ConfigurationError(
            f"a connection age of {seconds:g} s does not fit: with grace_period={budget.grace_period:g} s it must be "
            f"more than 0 and at most {longest:.1f} s, half of what is left for the drain"
        )
    return [(AGE, max(int(seconds * 1000), 1))]


def age_misfits(options: Options, budget: Budget) -> tuple[str, ...]:
    """Return what is wrong with a server's options for a stop of ``budget``, a line each; nothing if they fit."""
    age, grace = age_of(options), grace_of(options)
    drain = _drain_of(budget)
    if age is None:
        missing = (
            f"{AGE} is not set: clients that ignore the registry are told to leave only when the server stops, and "
            "lose calls; use connection_age_options(budget)"
        )
        return (missing,)
    said = []
    if age * JITTER > drain:
        said.append(
            f"{AGE}={age * 1000:.0f}: clients leave within {age * JITTER:.1f} s, but the drain may have no more than "
            f"{drain:.1f} s: lower it, or raise grace_period"
        )
    if grace is not None and grace < drain / 2:
        said.append(
            f"{AGE_GRACE}={grace * 1000:.0f}: cuts calls off that take longer, in every connection that grows old, "
            "stop or no stop: leave it out"
        )
    return tuple(said)


def age_of(options: Options) -> float | None:
    """Return the age in seconds that a server's options set; None if they set none."""
    return _seconds(options, AGE)


def grace_of(options: Options) -> float | None:
    """Return the seconds after which calls on an aged connection are cut; None if they are not."""
    return _seconds(options, AGE_GRACE)


def _seconds(options: Options, name: str) -> float | None:
    # The last one counts, as in the C core. INT_MAX, and what is negative, mean for ever.
    values = [value for key, value in options if key == name]
    return values[-1] / 1000 if values and 0 <= values[-1] < 2**31 - 1 else None


def _drain_of(budget: Budget) -> float:
    """Return the seconds that the drain has if all before it takes all of its time, without those for cutting off."""
    return (budget.grace_period - sum(budget.part(name) for name in _PARTS)) * 0.95
