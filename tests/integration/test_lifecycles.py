"""No sequence of starts, stops, crashes, losses, hand-overs and removals hurts a live instance, or brings one back.

Hypothesis plays processes that share two instance ids on a real registry, and a model says what must be listed. After
each step:

- whoever has an id is listed, alone, and no step that does not concern it has touched its entry: *no step removes a
  live successor*;
- whatever was stopped, or removed by an operator, is not listed: *nothing is resurrected by us*;
- in the end, when all have stopped, nothing is listed.

About 20 s for each registry. ``REGISTRY_DRAIN_LIFECYCLES=200`` plays so many examples instead, at random.
"""

from __future__ import annotations

import enum
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from registry_drain.errors import InstanceNotFoundError, LiveOwnerError
from registry_drain.instance import ServiceInstance
from registry_drain.registries.base import RegistryEntry, RemovalOutcome
from registry_drain.registries.url import open_registry
from tests.conftest import NewConsulAgent
from tests.integration.lifecycle_backends import (
    Backend,
    ConsulBackend,
    FullRegistration,
    LocalBackend,
    ZooKeeperBackend,
    soon,
)
from tests.support.processes import eventually
from tests.support.zookeeper_process import ZooKeeperServer

EXAMPLES = int(os.environ.get("REGISTRY_DRAIN_LIFECYCLES", "0"))
LOOK = 0.5
"""Seconds of looking for the resurrected in the end; the steps before look, too."""
PATIENCE = 30.0
IDS = ("one", "two")
MOST = 10
"""Processes in one run."""
WAYS = ("works", "fails", "fails before it registers")
ACTIONS = (
    *("start", "start", "operator_removes", "operator_removes", "operator_removes", "rejoin", "rejoin"),
    *("stop", "crash", "expire", "lose", "look", "hand_over"),
)
STEP = st.tuples(st.sampled_from(ACTIONS), st.integers(0, MOST - 1), st.integers(0, 5))
"""What is done, to which of those that come into question, and how.

One rule draws all three, come what may. What is drawn must not depend on what servers and threads do, or Hypothesis
could not repeat a run. And of several rules it would leave most out of each run ("swarm testing"): too little is left.
"""


class State(enum.Enum):
    """What the model knows of a process."""

    LIVE = "has the id"
    ELDER = "gave way to a successor"
    REMOVED = "was removed by an operator"
    CRASHED = "is dead, and the server has yet to notice"
    GONE = "is stopped, or dead and noticed"


@dataclass(eq=False)
class Actor:
    """One process' registration."""

    name: str
    id: str
    registration: FullRegistration
    state: State = State.LIVE


class Lifecycles(RuleBasedStateMachine):
    """The machine; one backend's servers, one service name of its own for each run."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.losses_left = backend.losses_left
        self.service = f"lifecycles-{uuid.uuid4().hex[:12]}"
        self.operator = open_registry(backend.url)
        self.processes = open_registry(backend.url)
        self.actors: list[Actor] = []
        self.versions: dict[str, str] = {}  # of the entries of those that have an id, after the last step
        self.touched: set[str] = set()  # whose entries this step may have written anew
        self.shown: list[RegistryEntry] = []  # what an operator has seen, some time ago

    # --- what there is ------------------------------------------------------------------------------------------------

    def entries(self) -> list[RegistryEntry]:
        """Return what is listed."""
        return list(self.operator.entries(self.service, soon()))

    def of(self, entry: RegistryEntry) -> Actor:
        """Return who wrote an entry."""
        return next(actor for actor in self.actors if actor.name == entry.metadata["process"])

    def those(self, *states: State) -> list[Actor]:
        """Return the processes in one of these states."""
        return [actor for actor in self.actors if actor.state in states]

    def pick(self, which: int, *states: State) -> Actor | None:
        """Return one of the processes in one of these states, if there are any."""
        found = self.those(*states)
        return found[which % len(found)] if found else None

    def owner(self, instance_id: str) -> Actor | None:
        """Return who has the id."""
        return next((actor for actor in self.those(State.LIVE) if actor.id == instance_id), None)

    def new_actor(self, instance_id: str) -> Actor:
        """Return a process that has not registered."""
        name = str(len(self.actors))
        instance = ServiceInstance(self.service, "192.0.2.7", 9090, id=instance_id, metadata={"process": name})
        registration = cast("FullRegistration", self.processes.registration(instance))
        time.sleep(0.002)  # whoever is newer must show a later millisecond
        return Actor(name, instance_id, registration)

    def succeeds(self, actor: Actor) -> None:
        """Note that ``actor`` has its id now."""
        for other in self.actors:
            if other.id == actor.id and other is not actor:
                if other.state is State.LIVE:
                    other.state = State.ELDER
                elif other.state is State.CRASHED:
                    other.state = State.GONE  # its entry is replaced, or removed
        actor.state = State.LIVE
        if actor not in self.actors:
            self.actors.append(actor)
        self.touched.add(actor.name)

    # --- what happens -------------------------------------------------------------------------------------------------

    @rule(step=STEP)
    def act(self, step: tuple[str, int, int]) -> None:
        """Do one thing; where nobody is there to do it to, start somebody."""
        action, which, option = step
        getattr(self, action)(which, option)

    def start(self, _which: int, option: int) -> None:
        """A process starts, first or as the successor of one that lives, died or was removed."""
        instance_id = IDS[option % len(IDS)]
        if len(self.actors) >= MOST:
            return
        actor = self.new_actor(instance_id)
        actor.registration.register(soon())
        self.succeeds(actor)

    def stop(self, which: int, option: int) -> None:
        """A process stops, whatever became of it."""
        actor = self.pick(which, State.LIVE, State.ELDER, State.REMOVED)
        if actor is None:
            self.start(which, option)
            return
        removal = actor.registration.on_shutdown(soon())
        assert removal.is_gone, removal
        if actor.state is State.REMOVED and removal.outcome is RemovalOutcome.CONFIRMED:
            assert "by an operator" in removal.detail, removal
        actor.state = State.GONE

    def crash(self, which: int, option: int) -> None:
        """A process dies without a goodbye."""
        actor = self.pick(which, State.LIVE)
        if actor is None:
            self.start(which, option)
            return
        self.backend.crash(actor.registration)
        actor.state = State.GONE if self.backend.dies_at_once else State.CRASHED

    def expire(self, which: int, option: int) -> None:
        """The server notices that a process is dead."""
        actor = self.pick(which, State.CRASHED)
        if actor is None:
            self.start(which, option)
            return
        self.backend.expire(actor.registration)
        actor.state = State.GONE

    def lose(self, which: int, option: int) -> None:
        """The server loses the entry of a process that lives, or the session of one that was removed."""
        actor = self.pick(which, State.LIVE, State.REMOVED)
        if actor is None or self.losses_left == 0:
            self.start(which, option)
            return
        if self.losses_left:
            self.losses_left -= 1
        is_all = self.backend.lose(actor.registration)
        self.touched |= {each.name for each in self.actors} if is_all else {actor.name}
        if is_all:
            for dead in self.those(State.CRASHED):
                dead.state = State.GONE

    def look(self, _which: int, _option: int) -> None:
        """An operator looks, and will act on that later."""
        self.shown = self.entries()

    def operator_removes(self, which: int, option: int) -> None:
        """An operator removes what is, or was, listed, with force or without."""
        is_stale, force = option == 0, option != 1
        shown = self.shown if is_stale else self.entries()
        if not shown:
            return
        entry = shown[which % len(shown)]
        try:
            removal = self.operator.remove(entry, soon(), force=force)
        except (LiveOwnerError, InstanceNotFoundError):
            return  # then nothing was removed: the invariant looks
        assert removal.outcome in {RemovalOutcome.CONFIRMED, RemovalOutcome.SUCCESSOR}, removal
        actor = self.of(entry)
        assert force or actor.state is not State.LIVE, f"removed a live one without force: {removal}"
        if actor.state is State.CRASHED:
            actor.state = State.GONE
        elif actor.state in {State.LIVE, State.ELDER}:
            actor.state = State.REMOVED

    def rejoin(self, which: int, option: int) -> None:
        """A process that was removed is told otherwise; not at the expense of one that came later."""
        actor = self.pick(which, State.REMOVED)
        if actor is None:
            self.start(which, option)
            return
        before = [self.of(entry) for entry in self.entries() if entry.id == actor.id]
        try:
            actor.registration.rejoin(soon())
        except LiveOwnerError:
            assert before, "refused although nobody was there"
            return
        assert self.owner(actor.id) is None, f"{actor} pushed out {before}"
        self.succeeds(actor)

    def hand_over(self, which: int, option: int) -> None:
        """A process hands its entry to the next one, which is good, or not."""
        old = self.pick(which, State.LIVE)
        if old is None or len(self.actors) >= MOST:
            self.stop(which, option)
            return
        way = WAYS[option % len(WAYS)]
        new = self.new_actor(old.id)
        self.actors.append(new)
        new.state = State.GONE
        self.touched |= {old.name, new.name}
        new.registration.adopt(old.registration.offer(soon()))
        if way != "fails before it registers":
            new.registration.register(soon())
        if way == "works":
            new.registration.confirm()
            assert old.registration.hand_over(soon()).outcome is RemovalOutcome.HANDED_OVER
            old.state, new.state = State.GONE, State.LIVE
            return
        old.registration.take_back(soon())
        new.registration.on_shutdown(soon())
        old.registration.take_back(soon())

    # --- what must be -------------------------------------------------------------------------------------------------

    @invariant()
    def the_right_ones_are_listed(self) -> None:
        """See the module; waits until the backends' threads have noticed what the step did."""
        for actor in self.those(State.REMOVED):
            wait(partial(getattr, actor.registration, "removed_by_operator"), f"{actor} knows that it was removed")
        for instance_id in IDS:
            owner = self.owner(instance_id)
            if owner is not None:
                self.wait_for_owner(owner)
        listed = self.entries()
        allowed = {State.LIVE, State.CRASHED, *([State.ELDER] if self.backend.elders_return else [])}
        for entry in listed:
            actor = self.of(entry)
            assert actor.state in allowed, f"resurrected: {actor}: {entry}"
        versions = {entry.metadata["process"]: entry.version for entry in listed if self.of(entry).state is State.LIVE}
        for name, version in versions.items():
            if name in self.versions and name not in self.touched:
                assert version == self.versions[name], f"process {name} was removed, and registered again, by this step"
        self.versions, self.touched = versions, set()

    def wait_for_owner(self, owner: Actor) -> None:
        """Wait until it is listed, and alone, and everybody knows it."""
        wait(lambda: owner.registration.is_registered, f"{owner} knows that it is registered")
        if self.backend.elders_return:
            elders = [elder.registration for elder in self.those(State.ELDER) if elder.id == owner.id]
            wait(lambda: not any(elder.is_registered for elder in elders), "its predecessors have given way")
        wait(lambda: self.names(owner.id) == [owner.name], f"only {owner} is listed")

    def names(self, instance_id: str) -> list[str]:
        """Return the processes that are listed under an id."""
        return [entry.metadata["process"] for entry in self.entries() if entry.id == instance_id]

    def teardown(self) -> None:
        """Stop all; nothing is left, and nothing comes back."""
        try:
            for actor in self.actors:
                if actor.state is State.CRASHED:
                    self.backend.expire(actor.registration)
                removal = actor.registration.on_shutdown(soon())
                assert removal.is_gone, removal
            ends_at = time.monotonic() + (LOOK if self.actors else 0.0)
            while time.monotonic() < ends_at:
                left = self.entries()
                assert not left, f"left behind, or resurrected: {left}"
        finally:
            self.processes.close()
            self.operator.close()


def wait(condition: Callable[[], object], because: str) -> None:
    """Wait until what must become true is true."""
    eventually(condition, timeout=PATIENCE, interval=0.01, because=because)


def play(new_backend: Callable[[], Backend], *, examples: int, steps: int) -> None:
    """Play examples on one backend's servers."""
    chosen = settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        print_blob=True,
        # To shrink a failure takes minutes here: only where somebody asked for that.
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
        suppress_health_check=list(HealthCheck),
    )
    machine: Any = lambda: Lifecycles(new_backend())  # noqa: E731 - what Hypothesis takes
    run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.zookeeper
def test_lifecycles_on_zookeeper(zookeeper_server: ZooKeeperServer, unique: str) -> None:
    """Sessions expire; nodes are taken over."""
    play(lambda: ZooKeeperBackend(zookeeper_server, unique), examples=8, steps=20)


@pytest.mark.consul
def test_lifecycles_on_consul(new_consul_agent: NewConsulAgent) -> None:
    """The agent is killed and forgets; heartbeats go on."""
    agent = new_consul_agent()
    play(lambda: ConsulBackend(agent), examples=4, steps=20)


def test_lifecycles_in_a_directory(tmp_path: Path) -> None:
    """Nothing is lost here; locks are dropped."""
    play(lambda: LocalBackend(str(tmp_path / "registry")), examples=8, steps=25)
