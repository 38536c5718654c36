"""A real ZooKeeper: one server with a directory of its own, to be frozen, killed and restarted on the same port.

With ``users`` it proves who is who by SASL DIGEST-MD5; with ``tls`` it has a second port, encrypted, beside the plain
one. Clients that prove nothing are still served, unless ``settings`` forbid it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.processes import READY_TIMEOUT, SERVERS_BIN, ManagedProcess, eventually, free_port
from tests.support.tls_files import TlsFiles


@functools.cache
def find_zookeeper() -> Path | None:
    """Return the launcher that ``.ci/servers`` wrote, for an installed or a fetched ZooKeeper, or None."""
    launcher = SERVERS_BIN / "zookeeper-server"
    return launcher if launcher.exists() and shutil.which("java") else None


class ZooKeeperServer:
    """One server process.

    A tick is 500 ms by default, so that clients may ask for session time-outs from 1 s to 10 s (2 and 20 ticks).
    Data survives ``restart`` and ``kill``, sessions do too if they are resumed in time. ``settings`` are further lines
    of the configuration. ``client_auth`` is what the TLS port wants of its clients: ``none``, ``want`` or ``need`` a
    certificate.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tick_time_ms: int = 500,
        settings: Mapping[str, object] | None = None,
        users: Mapping[str, str] | None = None,
        tls: TlsFiles | None = None,
        client_auth: str = "need",
    ) -> None:
        launcher = find_zookeeper()
        if launcher is None:
            raise RuntimeError("there is no ZooKeeper on this machine: run .ci/servers")
        self._launcher = launcher
        self.directory = directory
        self.tick_time_ms = tick_time_ms
        self.port = free_port()
        self.tls_port = free_port() if tls else 0
        self.users = users
        self._tls = tls
        self._client_auth = client_auth
        self._settings = dict(settings or {})
        self._process: ManagedProcess | None = None

    def __repr__(self) -> str:
        """Name the address and the process."""
        return f"<ZooKeeperServer {self.hosts} {self._process!r}>"

    def __enter__(self) -> ZooKeeperServer:
        """Start, and wait until it is ready."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill: a polite stop takes a second, and nobody looks any more."""
        self.kill()

    @property
    def hosts(self) -> str:
        """``127.0.0.1:port``, as kazoo takes it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The registry URL, without a base path."""
        return f"zookeeper://{self.hosts}"

    @property
    def tls_hosts(self) -> str:
        """The same of the TLS port."""
        assert self.tls_port, "started without TLS"
        return f"127.0.0.1:{self.tls_port}"

    @property
    def process(self) -> ManagedProcess:
        """The process that runs, or ran last."""
        assert self._process, "never started"
        return self._process

    def start(self, *, wait: bool = True) -> None:
        """Start the server; ``wait`` until it serves."""
        assert self._process is None or not self._process.is_running, f"{self!r} is running"
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        configuration = {
            "tickTime": self.tick_time_ms,
            "dataDir": data,
            "clientPort": self.port,
            "clientPortAddress": "127.0.0.1",
            "4lw.commands.whitelist": "*",
            "admin.enableServer": "false",
            "maxClientCnxns": 0,  # 60 per address by default, and all of a test's clients have one
            # A killed process loses nothing without fsync, only a dead machine would; and 64 MB of preallocated log
            # per start is more than all the data.
            "forceSync": "no",
            "preAllocSize": 1024,
            **(self._sasl_settings() if self.users else {}),
            **(self._tls_settings(self._tls) if self._tls else {}),
            **self._settings,
        }
        path = self.directory / "zoo.cfg"
        path.write_text("".join(f"{key}={value}\n" for key, value in configuration.items()), encoding="utf-8")
        environment = dict(os.environ)
        if self.users:
            environment["JAVA_TOOL_OPTIONS"] = f"-Djava.security.auth.login.config={self._jaas_file}"
        self._process = ManagedProcess([self._launcher, path], log=self.directory / "zookeeper.log", env=environment)
        if wait:
            self.wait_ready()

    @property
    def _jaas_file(self) -> Path:
        return self.directory / "jaas.conf"

    def _sasl_settings(self) -> dict[str, object]:
        users = "".join(f'    user_{name}="{password}"\n' for name, password in (self.users or {}).items())
        module = "org.apache.zookeeper.server.auth.DigestLoginModule"
        self._jaas_file.write_text(f"Server {{\n    {module} required\n{users}    ;\n}};\n", encoding="utf-8")
        return {"authProvider.sasl": "org.apache.zookeeper.server.auth.SASLAuthenticationProvider"}

    def _tls_settings(self, files: TlsFiles) -> dict[str, object]:
        # One file with the key, in the form that Java reads (PKCS #8), and the certificate.
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(files.server_key.read_bytes(), None)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        both = self.directory / "server-key-and-certificate.pem"
        both.write_bytes(key.private_bytes(*form) + files.server_cert.read_bytes())
        return {
            "serverCnxnFactory": "org.apache.zookeeper.server.NettyServerCnxnFactory",
            "secureClientPort": self.tls_port,
            "secureClientPortAddress": "127.0.0.1",
            "ssl.keyStore.location": both,
            "ssl.trustStore.location": files.ca,
            "ssl.clientAuth": self._client_auth,
        }

    def wait_ready(self, *, timeout: float = READY_TIMEOUT) -> None:
        """Wait until it serves requests (it answers ``ruok`` earlier)."""

        def probe() -> bool:
            if not self.process.is_running:
                raise RuntimeError(f"{self!r} has exited:\n{self.process.output_tail()}")
            return "zk_server_state" in self.four_letter_word("mntr", timeout=2.0)

        eventually(probe, timeout=timeout, because=f"{self!r} is ready")

    def stop(self) -> None:
        """SIGTERM. Idempotent; thaws."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        if self._process:
            self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, nothing is answered, and no session expires meanwhile."""
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.thaw()

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or ``kill``) and start again, on the same port and with the same data."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def four_letter_word(self, word: str, *, timeout: float = 10.0) -> str:
        """Return the answer to ``mntr``, ``cons``, ``wchs``, ``dump`` and the like."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(word.encode())
            with connection.makefile("rb") as answer:
                return answer.read().decode()

    def session_ids(self) -> set[int]:
        """Return the sessions that are alive on the server, connected or not."""
        sessions = self.four_letter_word("dump").split("ephemeral nodes dump")[0]
        return {int(word, 16) for word in sessions.split() if word.startswith("0x")}

    @contextlib.contextmanager
    def client(self, *, session_timeout: float = 10.0) -> Iterator[Any]:
        """Give a connected ``KazooClient`` of the test's own, for an independent look; closed at the end."""
        from kazoo.client import KazooClient

        client = KazooClient(hosts=self.hosts, timeout=session_timeout)
        client.start(timeout=READY_TIMEOUT)
        try:
            yield client
        finally:
            client.stop()
            client.close()

    def expire_session(self, session_id: int, password: bytes) -> None:
        """Expire somebody's session, as if it had timed out: take the session over and close it.

        The owner's connection is cut by the take-over, and on its reconnect it is told that the session has expired.
        Returns when the session, and with it every ephemeral node, is gone.
        """
        from kazoo.client import KazooClient

        def is_over() -> bool:
            # On a busy machine the owner may be back before our goodbye, and take its session with it: once more then.
            thief = KazooClient(hosts=self.hosts, client_id=(session_id, password), timeout=10.0)
            thief.start(timeout=READY_TIMEOUT)
            thief.stop()
            thief.close()
            return session_id not in self.session_ids()

        eventually(is_over, interval=0.1, because=f"session {session_id:#x} has expired")
