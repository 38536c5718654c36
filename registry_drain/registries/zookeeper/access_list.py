"""The access lists of what we create: instances, the folder they lie in, and the folders above it.

ZooKeeper asks the *folder* who may create and delete in it, and the node who may read and write it; nothing is
inherited. So the folder of a service gets the same list as its instances. The folders above are shared with other
services, whose identities are others: there we grant the world ``cr``, so that nobody is locked out by who came
first, and keep the rest to ourselves. A list from a file is used as it stands, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kazoo.security import ACL, ANYONE_ID_UNSAFE, CREATOR_ALL_ACL, READ_ACL_UNSAFE, Id, Permissions

from registry_drain.errors import ConfigurationError

PERMISSIONS = {
    "c": Permissions.CREATE,
    "d": Permissions.DELETE,
    "r": Permissions.READ,
    "w": Permissions.WRITE,
    "a": Permissions.ADMIN,
}
"""By the letters of ZooKeeper's own tools, in their order."""

_ADDED_ABOVE = ACL(Permissions.CREATE | Permissions.READ, ANYONE_ID_UNSAFE)
_CREATOR = "auth"
"""The scheme that the server replaces by whoever creates the node."""


@dataclass(frozen=True, slots=True)
class AccessLists:
    """What is given to what we create, in kazoo's form; None is ZooKeeper's own default, open to everybody.

    Attributes:
        node: for instances and the folder they lie in.
        above: for the folders above it.
    """

    node: tuple[ACL, ...] | None = None
    above: tuple[ACL, ...] | None = None

    @property
    def needs_identity(self) -> bool:
        """Whether it names the creator, who must then be somebody."""
        return any(each.id.scheme == _CREATOR for each in self.node or ())

    def of_parents(self, count: int) -> list[list[ACL] | None]:
        """Return the lists of a node's ``count`` ancestors, outermost first; the last is the folder it lies in."""
        lists = [self.above] * (count - 1) + [self.node] if count else []
        return [None if each is None else list(each) for each in lists]


ACCESS_LISTS = {
    "open": AccessLists(),
    "creator": AccessLists(tuple(CREATOR_ALL_ACL), (*CREATOR_ALL_ACL, _ADDED_ABOVE)),
    "public-read": AccessLists((*CREATOR_ALL_ACL, *READ_ACL_UNSAFE), (*CREATOR_ALL_ACL, _ADDED_ABOVE)),
}
"""By their name in a URL."""


def read_access_lists(file: Path, url: str) -> AccessLists:
    """Return the list in ``file``: ``scheme:id:permissions`` on each line, as ``setAcl`` of zkCli.sh takes them.

    Raises:
        ConfigurationError: it cannot be read, or is not of that form.
    """
    where = f"{url}: acl_file {file}"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"{where}: {reason}") from None
    acls = tuple(
        _parse(line.strip(), f"{where}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not acls:
        raise ConfigurationError(f"{where} holds no line scheme:id:permissions")
    return AccessLists(acls, acls)


def _parse(line: str, where: str) -> ACL:
    scheme, colon, rest = line.partition(":")
    # An id may hold colons: digest's user:hash, an IPv6 address.
    identity, second_colon, letters = rest.rpartition(":")
    if not colon or not second_colon or not scheme or not letters:
        raise ConfigurationError(f"{where}: not of the form scheme:id:permissions, as in digest:deployer:HASH:cdrwa")
    if any(letter not in PERMISSIONS for letter in letters):
        raise ConfigurationError(f"{where}: permissions are letters of {''.join(PERMISSIONS)}, and not {letters!r}")
    if not identity and scheme != _CREATOR:
        raise ConfigurationError(f"{where}: {scheme} needs an id, as in world:anyone:r")
    if scheme == "digest" and len(identity.rpartition(":")[2]) != len("qU5ayKZnC1gW9mEPhOv5mwkcfXY="):
        # The value is not repeated: it may be the password itself, which anybody could then use.
        raise ConfigurationError(f"{where}: digest wants user:base64(sha1(user:password)), and not a password")
    permissions = 0
    for letter in letters:
        permissions |= PERMISSIONS[letter]
    return ACL(permissions, Id(scheme, identity))


def acl_text(acl: ACL) -> str:
    """Return one entry as ZooKeeper's tools show it, without a digest's hash."""
    letters = "".join(letter for letter, bit in PERMISSIONS.items() if acl.perms & bit)
    identity = acl.id.id.partition(":")[0] if acl.id.scheme == "digest" else acl.id.id
    return f"{acl.id.scheme}:{identity}:{letters}"
