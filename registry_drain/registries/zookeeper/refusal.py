"""What ZooKeeper's bare *NoAuth* means: which node's access list lacks which permission, and for whom.

The server says no more than a number. Which permission a request takes, and of which node, is fixed
(``PrepRequestProcessor.checkACL``): creating and deleting ask the folder, all else asks the node. Reading the list
takes READ or ADMIN there, and shows digests without their hashes unless ADMIN is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kazoo.protocol.serialization import (
    Create,
    Create2,
    Delete,
    GetACL,
    GetChildren,
    GetChildren2,
    GetData,
    SetACL,
    SetData,
)

from registry_drain.registries.zookeeper.access_list import acl_text
from registry_drain.registries.zookeeper.credentials import Credential


@dataclass(frozen=True, slots=True)
class Need:
    """A permission that a request takes.

    Attributes:
        doing: what was asked for, as in "deleting /a/b".
        node: whose access list decides.
        permission: READ, WRITE, CREATE, DELETE or ADMIN.
    """

    doing: str
    node: str
    permission: str


def need_of(request: Any) -> Need | None:
    """Return what one of kazoo's requests takes, or None if that is not known."""
    for kinds, doing, permission in (
        ((Create, Create2), "creating", "CREATE"),
        ((Delete,), "deleting", "DELETE"),
        ((GetData,), "reading", "READ"),
        ((GetChildren, GetChildren2), "listing", "READ"),
        ((SetData,), "writing", "WRITE"),
        ((SetACL,), "protecting", "ADMIN"),
        ((GetACL,), "reading the access list of", "READ"),
    ):
        if isinstance(request, kinds):
            is_of_folder = permission in {"CREATE", "DELETE"}
            node = folder_of(request.path) if is_of_folder else request.path
            return Need(f"{doing} {request.path}", node, permission)
    return None


def folder_of(path: str) -> str:
    """Return the node whose access list says who may create and delete ``path``."""
    return path.rpartition("/")[0] or "/"


def refusal_text(need: Need, who: str, credential: Credential | None, acls: Sequence[Any] | None) -> str:
    """Return one line: what it takes, who lacks it, and who has it.

    Args:
        need: what was refused.
        who: what we are called.
        credential: what we presented, if it was of a file.
        acls: what the node grants, in kazoo's form; None if we may not know.
    """
    text = f"{need.doing} takes {need.permission} in the access list of {need.node}, which {who} does not have"
    if acls is None:
        return f"{text} (nor may it read that list)"
    text += f"; it grants {', '.join(acl_text(each) for each in acls) or 'nothing'}"
    if credential is not None and credential.scheme == "digest" and _has_other_password(credential, acls):
        text += f"; it knows {credential.identity}, so is the password in auth_file the right one?"
    return text


def _has_other_password(credential: Credential, acls: Sequence[Any]) -> bool:
    """Return whether our name is listed, but not as the password we have makes it. (A masked hash equals none.)"""
    return any(
        each.id.scheme == "digest"
        and each.id.id.partition(":")[0] == credential.user
        and each.id.id != credential.listed_as
        for each in acls
    )
