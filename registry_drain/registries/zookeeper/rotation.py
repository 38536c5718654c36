"""Taking somebody's node out of rotation and putting it back, exactly as it was shown, and proving it.

Theory of operation. Where the layout has a switch in a node's data, it is set there, by ``set_data`` with the version
that was read: every other byte stays, and what somebody wrote in between is never overwritten. Where it has rules
beside the nodes (Dubbo), one is written. Each write follows a consistent read, on the same session, that compares what
never repeats (see :mod:`registry_drain.registries.zookeeper.removal`, with the same remaining millisecond); none
creates an instance's node, so that nothing that has left comes back. A registration of this package keeps what it finds
in its node; after an expired session it writes a fresh one, which is in rotation.
"""

from __future__ import annotations

from typing import Any

from kazoo.exceptions import BadVersionError, NoNodeError

from registry_drain.clock import Deadline
from registry_drain.errors import (
    InstanceNotFoundError,
    LiveOwnerError,
    PermissionRefusedError,
    RegistryDataError,
    RegistryUnavailableError,
)
from registry_drain.registries.abilities import Rotation
from registry_drain.registries.base import RegistryEntry
from registry_drain.registries.retry import retrying
from registry_drain.registries.zookeeper.dubbo_rules import DUBBO, DubboRules, provider_of
from registry_drain.registries.zookeeper.layouts import LAYOUTS
from registry_drain.registries.zookeeper.layouts.base import SwitchableLayout
from registry_drain.registries.zookeeper.node_stat import owner_of, version_of
from registry_drain.registries.zookeeper.session import ZooKeeperSession, session_text
from registry_drain.registries.zookeeper.settings import SessionSettings
from registry_drain.registries.zookeeper.shared import SharedSession

_RULE = "override disabled=true"
"""How Dubbo's is called in what people read."""


def drainable_layouts() -> list[str]:
    """Return the names of the layouts in which an instance can be taken out of rotation."""
    return sorted({DUBBO, *(name for name, layout in LAYOUTS.items() if isinstance(layout, SwitchableLayout))})


class EntryRotation:
    """One call of ``drain`` or ``undrain``; see :class:`registry_drain.registries.abilities.RotationRegistry`."""

    def __init__(self, entry: RegistryEntry, settings: SessionSettings, shared: SharedSession) -> None:
        self._entry = entry
        self._settings = settings
        self._shared = shared

    def turn(self, deadline: Deadline, *, is_out: bool, reason: str = "") -> Rotation:
        """Take it out of rotation, or put it back, and look that it is; see the protocol."""
        for attempt in retrying(deadline):
            with attempt, self._shared.borrow() as session:
                if self._entry.layout == DUBBO:
                    return self._turn_by_rule(session, deadline, is_out=is_out, reason=reason)
                return self._turn_by_data(session, deadline, is_out=is_out)
        raise AssertionError("retrying() returns or raises")

    def _turn_by_data(self, session: ZooKeeperSession, deadline: Deadline, *, is_out: bool) -> Rotation:
        entry, path = self._entry, self._entry.locator
        layout = LAYOUTS.get(entry.layout)
        if not isinstance(layout, SwitchableLayout):
            raise self._without_state()
        data, stat = self._read(session, deadline)
        node = path.rpartition("/")[2]
        try:
            switched = layout.switched(node, data, is_out=is_out)
        except RegistryDataError as error:
            raise RegistryDataError(f"{entry} at {path} cannot be taken out of rotation: {error}") from error
        was_so = switched.data == data
        if not was_so:
            session.wait_connected(deadline)
            try:
                session.call(lambda client: client.set_async(path, switched.data, stat.version), deadline=deadline)
            except NoNodeError as error:
                raise self._gone() from error
            except BadVersionError as error:
                raise RegistryUnavailableError(f"{self._settings.url}: {path} changed just now") from error
            except PermissionRefusedError:
                raise
            except BaseException:  # Ctrl-C too: a late write could hit a successor
                session.begin_end()
                raise
            data, _ = self._read(session, deadline)
        is_out_now = bool(layout.decode(node, data).health)
        details = ["it was so already" if was_so else "", switched.detail if is_out else ""]
        if is_out_now != is_out:
            details.append("something else in its data keeps it out" if is_out_now else "it was put back just now")
        return Rotation(str(entry), self._settings.url, is_out_now, switched.how, "; ".join(filter(None, details)))

    def _turn_by_rule(self, session: ZooKeeperSession, deadline: Deadline, *, is_out: bool, reason: str) -> Rotation:
        entry = self._entry
        provider = provider_of(entry)
        if provider is None or not provider.interface:
            raise RegistryDataError(f"{entry} at {entry.locator} is no provider that a rule could name")
        rules = DubboRules(entry, provider, self._settings)
        _, stat = self._read(session, deadline, needs_data=False)
        rules.clear_stale(session, deadline)
        found = rules.read(session, deadline)
        # Providers since Dubbo 2.7 follow a rule by registering anew, with it in their URL.
        says_so = bool(LAYOUTS[DUBBO].decode(entry.locator.rpartition("/")[2], b"").health)
        details: list[str] = []
        if is_out and not found and not says_so:
            rules.disable(session, stat, reason, deadline)
            details.append(f"by the rule {rules.path}")
        elif not is_out and found:
            rules.enable(session, deadline)
        else:
            details.append("it was so already")
        left = rules.read(session, deadline)
        if left and not is_out:
            details.append(f"a rule that is not ours still disables it: {left[0].node}")
        elif says_so and not is_out:
            details.append("its URL says disabled=true until it registers anew, which Dubbo 2.7 and later do")
        return Rotation(str(entry), self._settings.url, bool(left) or says_so, _RULE, "; ".join(details))

    def _read(self, session: ZooKeeperSession, deadline: Deadline, *, needs_data: bool = True) -> tuple[bytes, Any]:
        """Return the node's data and stat by a consistent read, if it still is the one that was shown."""
        path = self._entry.locator

        def read(client: Any) -> Any:
            client.sync_async(path)  # its answer is not waited for; see read_stat()
            return client.get_async(path) if needs_data else client.exists_async(path)

        try:
            [answer] = session.call(read, deadline=deadline)
        except NoNodeError as error:
            raise self._gone() from error
        data, stat = answer if needs_data else (b"", answer)
        if stat is None:
            raise self._gone()
        if version_of(stat) != self._entry.version:
            owner = owner_of(stat)
            who = f"by session {session_text(owner)}" if owner else "as a persistent node"
            raise LiveOwnerError(f"{path} was registered anew {who} since it was listed")
        return data or b"", stat

    def _gone(self) -> InstanceNotFoundError:
        return InstanceNotFoundError(
            f"{self._entry} is gone: there is no {self._entry.locator} on {self._settings.url}"
        )

    def _without_state(self) -> RegistryDataError:
        layout = f"the layout {self._entry.layout}" if self._entry.layout else "what it is written in"
        return RegistryDataError(
            f"{self._entry}: {layout} has no state for an instance out of rotation; these layouts have one:"
            f" {', '.join(drainable_layouts())}"
        )
