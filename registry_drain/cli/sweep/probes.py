"""Connecting to addresses to see whether anybody listens there: many at a time, several times each.

Theory of operation. A connection that is *refused* is an answer: the host lives, and nothing listens on that port. (Or
a firewall that rejects instead of dropping says so in its place.) *No answer* is none: the host is down, or the network
between it and us, or packets are dropped on purpose. So the two are told apart, and an address counts as refusing only
if every try of every IP address behind its name was refused.

Rules:

1. One try proves nothing, since a process that is being restarted refuses, too: tries are spread over time, in rounds.
2. One connection that is accepted, in any round, is the end of it: somebody is there. It is closed at once; nothing is
   sent.
3. What only this host can mean (127.0.0.1, ``localhost``) is not tried unless asked for: the instance is on another
   host as far as anybody knows.
4. At most so many connections at a time, however many addresses there are.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from registry_drain.clock import Clock, Deadline

Endpoint = tuple[str, int]

AT_A_TIME = 32
"""Connections under way at once: quick for hundreds of addresses, and no scan that alarms a network's guards."""
_NAME_LOOKUP_TIMEOUT = 10.0
"""Seconds; the resolver's own patience with one name server after another is longer than anybody's here."""


class Answer(Enum):
    """What became of the tries of one address."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NO_ANSWER = "no answer"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found at one address.

    Attributes:
        answer: of all tries together.
        tries: how many there were.
        detail: what happened, for a person: ``refused 3 of 3 connections in 4.0 s``.
    """

    answer: Answer
    tries: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """How to try; times in seconds.

    Attributes:
        tries: rounds.
        every: from the beginning of a round to that of the next one.
        connect_timeout: how long one connection may take.
        with_loopback: whether 127.0.0.1 and its like are tried, too: all instances are on this host.
    """

    tries: int = 3
    every: float = 2.0
    connect_timeout: float = 1.0
    with_loopback: bool = False


def probe_all(
    endpoints: Iterable[Endpoint],
    plan: ProbePlan,
    clock: Clock,
    on_round: Callable[[int, int], None] = lambda _round, _left: None,
) -> dict[Endpoint, Probe]:
    """Try each of ``endpoints`` as planned; ``on_round`` hears which round begins, for how many addresses.

    Takes ``tries`` rounds, each of them as long as its silent addresses make it.
    """
    begun_at = clock.now()
    seen: dict[Endpoint, list[tuple[Answer, str]]] = {endpoint: [] for endpoint in endpoints}
    never = threading.Event()
    for number in range(plan.tries):
        left = [endpoint for endpoint, answers in seen.items() if _is_open(answers)]
        if not left:
            break
        on_round(number + 1, len(left))
        next_round = Deadline.after(plan.every, clock)
        for endpoint, answer in _round(left, plan, clock).items():
            seen[endpoint].append(answer)
        if number + 1 < plan.tries and any(_is_open(answers) for answers in seen.values()):
            next_round.wait(never)
    return {endpoint: _summary(answers, clock.now() - begun_at) for endpoint, answers in seen.items()}


def _is_open(answers: list[tuple[Answer, str]]) -> bool:
    return not answers or answers[-1][0] in {Answer.REFUSED, Answer.NO_ANSWER}


def _round(endpoints: list[Endpoint], plan: ProbePlan, clock: Clock) -> dict[Endpoint, tuple[Answer, str]]:
    """Try each once, at most AT_A_TIME together."""
    waiting: queue.SimpleQueue[Endpoint] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Endpoint, tuple[Answer, str]]] = queue.SimpleQueue()
    for endpoint in endpoints:
        waiting.put(endpoint)

    def work() -> None:
        while True:
            try:
                endpoint = waiting.get_nowait()
            except queue.Empty:
                return
            done.put((endpoint, _tried(endpoint, plan)))

    # Daemons: a name server that never answers must not keep the command alive.
    workers = min(AT_A_TIME, len(endpoints))
    for number in range(workers):
        threading.Thread(target=work, name=f"registry-drain-probe-{number}", daemon=True).start()
    each = _NAME_LOOKUP_TIMEOUT + plan.connect_timeout
    deadline = Deadline.after(each * (1 + len(endpoints) // workers), clock)
    answers: dict[Endpoint, tuple[Answer, str]] = {}
    while len(answers) < len(endpoints) and not deadline.is_past:
        try:
            endpoint, answer = done.get(timeout=min(deadline.remaining(), 0.1))  # short, for Ctrl-C
        except queue.Empty:
            continue
        answers[endpoint] = answer
    late = (Answer.NO_ANSWER, "its name could not be looked up in time")
    return {endpoint: answers.get(endpoint, late) for endpoint in endpoints}


def _tried(endpoint: Endpoint, plan: ProbePlan) -> tuple[Answer, str]:
    try:
        found = socket.getaddrinfo(*endpoint, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Answer.NO_ANSWER, f"its name is not known here ({getattr(error, 'strerror', None) or error})"
    if not plan.with_loopback and any(_is_this_host(each[4][0]) for each in found):
        return Answer.NOT_TRIED, "means another host on each host: --loopback if all instances are on this one"
    worst = (Answer.REFUSED, "refused")
    for family, kind, protocol, _, address in found:
        answer, detail = _connected(family, kind, protocol, address, plan.connect_timeout)
        if answer is Answer.ACCEPTED:
            return answer, detail
        if answer is Answer.NO_ANSWER:
            worst = (answer, detail)
    return worst


def _connected(family: int, kind: int, protocol: int, address: object, timeout: float) -> tuple[Answer, str]:
    try:
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(timeout)
            connection.connect(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
    except ConnectionRefusedError:
        return Answer.REFUSED, "refused"
    except TimeoutError:
        return Answer.NO_ANSWER, f"no answer within {timeout:g} s"
    except OSError as error:
        return Answer.NO_ANSWER, os.strerror(error.errno or errno.EIO)
    return Answer.ACCEPTED, "accepted"


def _is_this_host(host: object) -> bool:
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _summary(answers: list[tuple[Answer, str]], took: float) -> Probe:
    if not answers:
        return Probe(Answer.NOT_TRIED, 0, "not tried")
    last, detail = answers[-1]
    if last in {Answer.ACCEPTED, Answer.NOT_TRIED}:
        return Probe(last, len(answers), detail)
    refused = sum(1 for answer, _ in answers if answer is Answer.REFUSED)
    if refused == len(answers):
        return Probe(Answer.REFUSED, refused, f"refused {refused} of {refused} connections within {took:.1f} s")
    silent = next(each for answer, each in reversed(answers) if answer is Answer.NO_ANSWER)
    some = f", {refused} refused" if refused else ""
    return Probe(
        Answer.NO_ANSWER,
        len(answers),
        f"did not answer {len(answers) - refused} of {len(answers)} connections within {took:.1f} s ({silent}{some})",
    )
