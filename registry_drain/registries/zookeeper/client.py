"""kazoo's client as we make it and end it: the one file that knows more of kazoo than its documentation says."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from dataclasses import dataclass
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionDropped
from kazoo.protocol.serialization import CloseInstance
from kazoo.protocol.states import KeeperState

from registry_drain.registries.zookeeper.handler import ConnectionNotes, NotingHandler, noting
from registry_drain.registries.zookeeper.settings import SessionSettings

# max_tries -1: an outage may last. The delays are measured: kazoo's own let a session that comes back wait for 15 to
# 20 s more after an outage of a minute, these less than one.
_RECONNECT = {"max_tries": -1, "delay": 0.05, "max_delay": 1.0}


@dataclass(frozen=True, slots=True, repr=False)
class SessionKey:
    """What resumes a session. The password lets anybody close it, so it is in no repr."""

    id: int
    password: bytes


class SessionClient(KazooClient):  # type: ignore[misc] # kazoo has no annotations
    """kazoo's client, which also says what it was asked for, and how an authentication failed.

    Should one of the two methods be gone one day, messages say less; nothing else changes.
    """

    def __init__(self, **options: Any) -> None:
        self._sent = threading.local()
        self.was_hung_up_on = False
        """Whether SASL failed because the connection ended: so old ZooKeepers refuse, and so any one stops."""
        super().__init__(**options)

    @property
    def is_proving(self) -> bool:
        """Whether SASL has begun on the last connection, and has not come to its end."""
        exchange = getattr(self, "sasl_cli", None)
        return exchange is not None and not exchange.complete

    def take_last_request(self) -> Any:
        """Return the request that this thread handed over last, once; None if there was none."""
        request, self._sent.request = getattr(self._sent, "request", None), None
        return request

    def _call(self, request: Any, async_object: Any) -> Any:
        self._sent.request = request
        return super()._call(request, async_object)

    def _session_callback(self, state: Any) -> Any:
        if state == KeeperState.AUTH_FAILED:
            # kazoo calls this while it handles the failure, and keeps that to itself.
            error = sys.exc_info()[1]
            self.was_hung_up_on = isinstance(error and error.__cause__, ConnectionDropped)
        return super()._session_callback(state)


def new_client(settings: SessionSettings, resume: SessionKey | None, notes: ConnectionNotes) -> SessionClient:
    """Return a client that was not started, for a new session or the one to resume.

    Raises:
        ConfigurationError: a file (credentials, certificates) cannot be read.
    """
    credential, tls = settings.read_credential(), settings.tls
    context = noting(tls.context(settings.url)) if tls else None
    return SessionClient(
        hosts=settings.hosts,
        randomize_hosts=not settings.is_ordered,
        timeout=settings.session_timeout,
        client_id=(resume.id, resume.password) if resume else None,
        handler=NotingHandler(notes, context, tls.server_name if tls else ""),
        auth_data=credential.auth_data if credential else [],
        sasl_options=credential.sasl_options if credential else None,
        default_acl=list(settings.access.node) if settings.access.node else None,
        connection_retry=dict(_RECONNECT),
        logger=_kazoo_log(),
    )


def send_goodbye(client: Any) -> bool:
    """Do the first half of kazoo's ``stop()``, which never blocks; return whether that was possible.

    ``stop()`` goes on to end three threads and to join them, and needs a thread around it because that may block:
    together longer than ZooKeeper takes to end a session. What is touched here is the same since kazoo 1.0; should it
    be gone one day, :func:`let_go` calls ``stop()`` for both halves, and only the milliseconds are lost.
    """
    try:
        is_stopped, queue, wake = client._stopped, client._queue, client._connection._write_sock  # noqa: SLF001
        if wake is None or not callable(client._safe_close):  # noqa: SLF001
            return False
    except AttributeError:
        return False
    is_stopped.set()
    queue.append((CloseInstance, None))
    with contextlib.suppress(OSError):  # its connection thread is ending anyway
        wake.send(b"\0")
    return True


def let_go(client: Any, *, is_goodbye_said: bool) -> None:
    """Do the rest of ``stop()``, or all of it, and free the sockets. May block for as long as a session lasts."""
    if is_goodbye_said:
        client._safe_close()  # noqa: SLF001
    else:
        client.stop()
    # stop() alone leaks the socket pair (kazoo#577).
    client.close()


class _NoSecrets(logging.Filter):
    """Keeps kazoo's messages below INFO back: they hold the credentials it sends, and session passwords."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let INFO and above through."""
        return record.levelno >= logging.INFO


def _kazoo_log() -> logging.Logger:
    logger = logging.getLogger(f"{__name__}.kazoo")
    if not logger.filters:
        logger.addFilter(_NoSecrets())
    return logger
