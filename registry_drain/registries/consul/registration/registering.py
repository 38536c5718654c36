"""Into the agent, until a consistent read lists us, and over whoever had the instance id before."""

from __future__ import annotations

from registry_drain.clock import Deadline
from registry_drain.errors import LiveOwnerError, PermissionRefusedError, RegistryDrainError, RegistryTimeoutError
from registry_drain.registries.consul.catalog import Listed
from registry_drain.registries.consul.registration.last_taken import LastTaken
from registry_drain.registries.consul.registration.sight import Sight
from registry_drain.registries.consul.registration.standing import Standing, log

_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.25


class Registering:
    """The writes that make an entry, and those that remove a rival's. Each stands behind the fence. Thread-safe."""

    def __init__(self, standing: Standing, sight: Sight, taken: LastTaken) -> None:
        self._standing = standing
        self._sight = sight
        self._taken = taken

    def register(self, deadline: Deadline, *, takes_over: bool = True) -> None:
        """Register with the agent, and return when a consistent read lists the instance.

        Raises:
            RegistryUnavailableError: retryable. The instance may be listed.
            PermissionRefusedError: the token lacks ``service:write``.
            LiveOwnerError: fenced.
        """
        fence = self._standing.fence
        try:
            with fence.writing():
                if takes_over:
                    self._standing.be_youngest()
                self._standing.note_sending()
                self.put(deadline)
            self.await_listed(deadline, takes_over=takes_over)
        except RegistryDrainError as error:
            if fence.is_raised and not isinstance(error, LiveOwnerError):
                raise self._standing.membership.fenced() from error
            raise
        # Now, and not in the stop: the first use imports the library, which takes a second on a busy machine.
        self._standing.reader.native(deadline)

    def put(self, deadline: Deadline, *, keeps_checks: bool = False) -> None:
        """Send the registration. Only inside the fence's ``writing``."""
        standing = self._standing
        token = standing.address.tokens.current()
        # The parameter also ends maintenance mode, which would outlive the process that was put into it.
        params = None if keeps_checks else {"replace-existing-checks": "true"}
        body = standing.own.payload()
        sent_at = standing.clock.now()
        self._taken.forget_agent()  # now: it may take this, and the answer be lost
        standing.writer.call("PUT", "agent", "service", "register", deadline=deadline, params=params, body=body)
        self._taken.note_registration(token, sent_at)

    def await_listed(self, deadline: Deadline, *, takes_over: bool = True) -> None:
        """Wait until a consistent read lists us, and until it lists no predecessor on our agent any more.

        A successor that is listed by then stays, and ours goes; the next heartbeat finds the same, and gives way.
        """
        standing = self._standing
        membership, stop = standing.membership, standing.fence.raised
        look = _FIRST_LOOK
        taken_over: set[str] = set()
        while not stop.is_set():
            listed = self._sight.read(deadline)
            mine = standing.own.find(listed)
            if self._gives_way(listed, mine, deadline):
                log.warning("%s: a successor has registered already: this one gives way", membership.instance)
                return
            if mine is not None:
                old = {each.consul_id for each in listed if each.node == mine.node and each is not mine} - taken_over
                if not old or not takes_over:
                    return
                for consul_id in sorted(old):
                    self.take_over(consul_id, deadline)
                taken_over |= old
                continue
            try:
                self._sight.require(deadline)
            except PermissionRefusedError as error:
                log.warning("%s: registered, but nothing can prove it, nor its removal: %s", membership.instance, error)
                return
            if deadline.is_past:
                message = f"{membership.url}: {membership.instance}: its agent took it, and the servers do not list it"
                raise RegistryTimeoutError(message)
            standing.clock.wait(stop, min(look, deadline.remaining()))
            look = min(look * 2, _LONGEST_LOOK)
        raise membership.fenced()

    def _gives_way(self, listed: list[Listed], mine: Listed | None, deadline: Deadline) -> bool:
        """Whether somebody has registered later, lives, and has an entry of its own; ours is gone then."""
        standing = self._standing
        own, now = standing.own, standing.clock.unix_time()
        others = [each for each in listed if each.consul_id != own.consul_id and each.is_live]
        younger = [each for each in others if own.is_younger(each.meta, now)]
        if not younger or standing.is_between:
            return False
        if mine is None:
            return not own.on_agent(standing.writer, deadline).has_ours  # else the servers do not list it yet
        if all(each.node != mine.node for each in younger):
            return False
        # It may have looked before the servers listed us, and not look again.
        self.withdraw(deadline)
        return True

    def take_over(self, consul_id: str, deadline: Deadline) -> None:
        """Remove a predecessor from our agent. A failure is only logged: we are listed, which is what counts.

        Raises:
            LiveOwnerError: fenced.
        """
        instance = self._standing.membership.instance
        try:
            with self._standing.fence.writing():
                self._standing.writer.native(deadline).agent.service.deregister(consul_id)
        except LiveOwnerError:
            raise
        except RegistryDrainError as error:
            # A dead predecessor expires by itself.
            log.warning("%s: could not take over from its predecessor %s: %s", instance, consul_id, error)
        else:
            log.info("%s: took over from its predecessor %s", instance, consul_id)

    def withdraw(self, deadline: Deadline) -> None:
        """Remove our own entry again: a successor has registered meanwhile."""
        with self._standing.fence.writing():
            self._standing.writer.native(deadline).agent.service.deregister(self._standing.own.consul_id)
