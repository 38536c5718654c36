"""One heartbeat, and what follows when the agent does not know us: register again, give way, or stay out."""

from __future__ import annotations

from registry_drain.clock import Deadline
from registry_drain.registries.consul.registration.last_taken import LastTaken
from registry_drain.registries.consul.registration.registering import Registering
from registry_drain.registries.consul.registration.standing import Standing, log


class Renewing:
    """See the module. :meth:`beat` belongs to the heartbeat's thread; :meth:`settle` to any."""

    def __init__(self, standing: Standing, registering: Registering, taken: LastTaken) -> None:
        self._standing = standing
        self._registering = registering
        self._taken = taken
        self._has_yielded = False  # to a successor that stands on our agent
        self._is_unsettled = False  # written again, and not looked since who else has

    def beat(self) -> str:
        """Pass the check once. See :class:`Heartbeat` for what is returned and raised."""
        standing = self._standing
        deadline = Deadline.after(standing.address.timeout, standing.clock)
        sent_at = standing.clock.now()
        with standing.fence.writing():
            is_known = standing.writer.native(deadline).agent.check.ttl_pass(standing.own.check_id)
            is_between = standing.is_between
            if is_known and self._taken.is_token_rotated and not is_between:
                # It is this very process that may be in maintenance mode: only the token is new.
                self._is_unsettled = True  # somebody may have taken over since the check was passed
                self._registering.put(deadline, keeps_checks=True)
        if is_known:
            self._has_yielded = False
            # Somebody may have put the very entry back, or the agent has taken one of ours and its answer was lost.
            standing.note_listed()
            self._taken.note_beat(sent_at, deadline)
            return self.settle(deadline) if self._is_unsettled else ""
        if is_between:
            return "lost, or deregistered, during a hand-over: whoever wins it registers again"
        if self._taken.is_newer_than(sent_at):
            return ""  # a rejoin came between: this answer is out of date
        standing.note_missing()
        return "" if standing.removed.is_noted else self._missed(deadline)

    def _missed(self, deadline: Deadline) -> str:
        standing = self._standing
        is_same_connection = self._taken.is_same_connection
        found = standing.own.on_agent(standing.writer, deadline)
        if found.successor:
            self._has_yielded = True
            return f"its successor {found.successor} is registered: this one gives way"
        gone = self._taken.disappearance(deadline, is_same_connection=is_same_connection)
        # Where only the check is missing nobody took the instance out; and what a successor removed no operator did.
        if gone.is_removal and not found.has_ours and not self._has_yielded:
            standing.removed.note(str(gone))
            return ""
        with standing.fence.writing():
            if standing.is_offered:
                return "offered to the next process, which registers it"
            self._is_unsettled = True
            self._registering.put(deadline)
            standing.note_listed()
        why = "its successor has left" if self._has_yielded else str(gone)
        why = "only its check was gone" if found.has_ours else why
        log.warning("%s had lost it, registered again: %s", standing.membership, why)
        return self.settle(deadline)

    def settle(self, deadline: Deadline) -> str:
        """Look who else has registered meanwhile, since nobody can look and register at once: the youngest stays.

        Returns:
            That we gave way; else empty.
        """
        found = self._standing.own.on_agent(self._standing.writer, deadline)
        if found.successor:
            self._registering.withdraw(deadline)
        for elder in found.elders:
            self._registering.take_over(elder, deadline)
        self._is_unsettled = False
        if not found.successor:
            return ""
        self._has_yielded = True
        self._standing.note_missing()
        return f"its successor {found.successor} is registered: this one gives way"
