"""The file that a Unix socket is bound to, and its removal without taking a successor's.

A socket's file outlives it, and keeps the path from being bound again. Whoever removes it by its name alone may remove
another's: a successor that was started meanwhile has removed ours and bound its own, or moved it there. So the file is
remembered by its inode, which a descriptor keeps from being given to another.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)


class BoundPath:
    """The file that ``sock`` is bound to; nothing for other sockets, abstract and unnamed ones. Not thread-safe.

    Make it when the socket has just been bound. It keeps a descriptor until it is removed or forgotten.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._descriptor: int | None = None
        self._close: Callable[[], object] | None = None
        self._path = ""
        address = sock.getsockname() if sock.family == socket.AF_UNIX else ""
        if not isinstance(address, str) or not address or address.startswith("\0"):
            return
        # What is relative now may mean another directory later.
        self._path = os.path.abspath(address)  # noqa: PTH100  resolving links would name another file than was bound
        with suppress(OSError, AttributeError):  # Only Linux has O_PATH.
            self._descriptor = os.open(self._path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            # Also for a listener that nobody stops.
            self._close = weakref.finalize(self, os.close, self._descriptor)

    def remove(self) -> bool:
        """Remove the file if it is still ours; return whether it was. Never raises; later calls do nothing.

        If a successor takes the path in the very moment, its file is put back, and missing for some microseconds.
        """
        try:
            return self._descriptor is not None and self._is_ours(self._path) and self._take_away()
        except OSError as error:
            logger.warning("the socket's file %s could not be removed: %s", self._path, error)
            return False
        finally:
            self.forget()

    def forget(self) -> None:
        """Leave the file where it is. Idempotent."""
        self._descriptor = None
        if self._close is not None:
            self._close()

    def _is_ours(self, path: str) -> bool:
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            return False
        return self._descriptor is not None and os.path.samestat(there, os.fstat(self._descriptor))

    def _take_away(self) -> bool:
        # Between a look at a file and its removal another may take its place; a renamed one is held fast.
        aside = f"{self._path}.{uuid.uuid4().hex[:8]}"
        Path(self._path).rename(aside)
        is_ours = self._is_ours(aside)
        if not is_ours:
            with suppress(FileExistsError):  # Somebody has bound the path since: theirs is the latest.
                os.link(aside, self._path, follow_symlinks=False)
        Path(aside).unlink()
        return is_ours

    def __repr__(self) -> str:
        """Show the path."""
        return f"<BoundPath {self._path or '(none)'}>"
