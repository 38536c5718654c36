"""Out of rotation, before the removal: by a switch in our own node's data, or by a rule beside it (Dubbo)."""

from __future__ import annotations

from registry_drain.clock import Deadline
from registry_drain.errors import LiveOwnerError, RegistryDataError, RegistryUnavailableError
from registry_drain.registries.zookeeper.dubbo_rules import DUBBO, disable_own
from registry_drain.registries.zookeeper.layouts.base import Layout, SwitchableLayout
from registry_drain.registries.zookeeper.session import ZooKeeperSession, session_text
from registry_drain.registries.zookeeper.settings import SessionSettings


def switch_out(
    session: ZooKeeperSession, layout: Layout, path: str, settings: SessionSettings, deadline: Deadline
) -> None:
    """Set the switch in the node at ``path``, if ``session`` holds it. What a successor writes never sees these data.

    Where rules beside the nodes do it (Dubbo) one is written that goes with the session.

    Raises:
        RegistryDataError: the layout has no such switch.
        LiveOwnerError: somebody else's node stands there.
        RegistryUnavailableError: as everywhere; and if the node changed just now.
    """
    if layout.name == DUBBO:
        disable_own(session, path, settings, deadline)
        return
    if not isinstance(layout, SwitchableLayout):
        raise RegistryDataError(f"the layout {layout.name} has no state for an instance out of rotation")
    [answer] = session.call_each([lambda client: client.get_async(path)], deadline=deadline)
    if isinstance(answer, Exception):
        raise RegistryUnavailableError(f"{settings.url}: {path} is gone") from answer
    data, stat = answer
    if stat.ephemeralOwner != session.id:
        raise LiveOwnerError(f"{path} belongs to session {session_text(stat.ephemeralOwner)} now")
    out = layout.switched(path.rpartition("/")[2], data or b"", is_out=True).data
    # A successor's node has another version: see taking over.
    [answer] = session.call_each([lambda client: client.set_async(path, out, stat.version)], deadline=deadline)
    if isinstance(answer, Exception):
        raise RegistryUnavailableError(f"{settings.url}: {path} changed just now") from answer
