"""Real Consul agents: one alone, or a server with client agents, each to be frozen, killed and restarted at will.

Rules: every agent has ports, node name and directory of its own, listens on 127.0.0.1 only, and keeps its ports when it
is restarted, because that is what a client has to survive. Configuration goes through a file, so that tokens are in
nobody's argv. The settings stay inside what Consul 1.8 to current understand; where they differ, ``_version`` decides.
"""

from __future__ import annotations

import functools
import http.client
import json
import re
import shutil
import ssl
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from tests.support.processes import READY_TIMEOUT, SERVERS_BIN, ManagedProcess, eventually, free_port
from tests.support.tls_files import TlsFiles

MANAGEMENT_TOKEN = "7d3c7a56-5c1e-4d1b-9f2a-0c0ffee00001"
"""The token that may do everything, on every agent with ``acl=True``."""


@functools.cache
def find_consul() -> Path | None:
    """Return the Consul to use: the installed one, else what ``.ci/servers`` has fetched, else None."""
    installed = shutil.which("consul")
    fetched = SERVERS_BIN / "consul"
    return Path(installed) if installed else fetched if fetched.exists() else None


@functools.cache
def _version(binary: Path) -> tuple[int, int]:
    output = subprocess.run([binary, "version"], check=True, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"v(\d+)\.(\d+)", output)
    assert found, output
    return int(found[1]), int(found[2])


@dataclass(frozen=True, slots=True)
class Answer:
    """What Consul said to one HTTP request."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """Return the decoded body; an empty one is None."""
        return json.loads(self.body) if self.body else None


class ConsulAgent:
    """One agent process.

    By default a development agent: server and agent in one, everything in memory, so that ``restart`` forgets all
    services. With ``keeps_data`` a single server with a directory, which remembers. With ``join`` a client agent of the
    servers at these Serf addresses. ``acl`` denies by default and knows MANAGEMENT_TOKEN. ``tls`` adds HTTPS that
    demands a client certificate, and ``url`` then names HTTPS; plain HTTP stays open for the test's own look.
    ``settings`` are merged over the configuration file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        acl: bool = False,
        tls: TlsFiles | None = None,
        keeps_data: bool = False,
        join: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        binary = find_consul()
        if binary is None:
            raise RuntimeError("there is no Consul on this machine: run .ci/servers")
        self._binary = binary
        self.directory = directory
        self.node_name = f"node-{uuid.uuid4().hex[:8]}"
        self.has_acl = acl
        self.tls = tls
        self.token = MANAGEMENT_TOKEN if acl else ""
        self.keeps_data = keeps_data or bool(join)
        self.is_client = bool(join)
        self.http_port = free_port()
        self.https_port = free_port() if tls else -1
        self.dns_port = free_port()
        self._serf_port = free_port()
        self._join = list(join)
        self._settings = dict(settings or {})
        self._server_port = free_port()
        self._process: ManagedProcess | None = None

    def __repr__(self) -> str:
        """Name node, address and process."""
        return f"<ConsulAgent {self.node_name} {self.http_address} {self._process!r}>"

    def __enter__(self) -> ConsulAgent:
        """Start, and wait until it is ready."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill: a polite stop takes a second, and nobody looks any more."""
        self.kill()

    # --- addresses ----------------------------------------------------------------------------------------------------

    @property
    def http_address(self) -> str:
        """``127.0.0.1:port`` of plain HTTP."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def https_address(self) -> str:
        """``127.0.0.1:port`` of HTTPS."""
        assert self.tls, "started without TLS"
        return f"127.0.0.1:{self.https_port}"

    @property
    def dns_address(self) -> str:
        """``127.0.0.1:port`` of DNS, over UDP and TCP."""
        return f"127.0.0.1:{self.dns_port}"

    @property
    def serf_address(self) -> str:
        """What another agent joins."""
        return f"127.0.0.1:{self._serf_port}"

    @property
    def url(self) -> str:
        """The registry URL, without options."""
        return f"consul+https://{self.https_address}" if self.tls else f"consul://{self.http_address}"

    @property
    def process(self) -> ManagedProcess:
        """The process that runs, or ran last."""
        assert self._process, "never started"
        return self._process

    @property
    def log(self) -> Path:
        """Where the agent logs to."""
        return self.directory / "consul.log"

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start the agent; ``wait`` until it is ready."""
        assert self._process is None or not self._process.is_running, f"{self!r} is running"
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "agent.json"
        config.write_text(json.dumps(self._configuration(), indent=2), encoding="utf-8")
        mode = [] if self.keeps_data else ["-dev"]
        self._process = ManagedProcess([self._binary, "agent", *mode, "-config-file", config], log=self.log)
        if wait:
            self.wait_ready()

    def wait_ready(self, *, timeout: float = READY_TIMEOUT) -> None:
        """Wait until a consistent read lists this very agent as healthy, which includes a leader and the ACLs."""

        def probe() -> bool:
            if not self.process.is_running:
                raise RuntimeError(f"{self!r} has exited:\n{self.process.output_tail()}")
            answer = self.request("GET", f"/v1/health/node/{self.node_name}?consistent", timeout=2.0)
            return answer.status == 200 and any(each["Status"] == "passing" for each in answer.json())

        eventually(probe, timeout=timeout, because=f"{self!r} is ready")

    def stop(self) -> None:
        """SIGTERM; a client agent leaves its cluster. Idempotent; thaws."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        if self._process:
            self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, and nothing is answered."""
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.thaw()

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or ``kill``) and start again, on the same ports; forgets everything unless it keeps data."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    # --- a look of the test's own -------------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: object = None, *, token: str | None = None, timeout: float = 10.0
    ) -> Answer:
        """Ask the HTTP API, over a connection of its own; ``token`` defaults to the management token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
        return _exchange(connection, method, path, body, self.token if token is None else token)

    def request_tls(self, method: str, path: str, body: object = None, *, timeout: float = 10.0) -> Answer:
        """Ask over HTTPS, with the client certificate."""
        assert self.tls, "started without TLS"
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        context.load_cert_chain(self.tls.client_cert, self.tls.client_key)
        connection = http.client.HTTPSConnection("127.0.0.1", self.https_port, timeout=timeout, context=context)
        return _exchange(connection, method, path, body, self.token)

    def get(self, path: str) -> Any:
        """Return the JSON of a GET that must succeed."""
        answer = self.request("GET", path)
        assert answer.status == 200, answer
        return answer.json()

    def put(self, path: str, body: object = None) -> Any:
        """Return the JSON of a PUT that must succeed."""
        answer = self.request("PUT", path, body)
        assert answer.status == 200, answer
        return answer.json()

    def instances(self, service: str, *, passing: bool = False) -> dict[str, dict[str, Any]]:
        """Return the health entries of a service by instance id, from a consistent read."""
        query = "consistent&passing" if passing else "consistent"
        found = self.get(f"/v1/health/service/{quote(service, safe='')}?{query}")
        return {each["Service"]["ID"]: each for each in found}

    def forget_everything(self) -> None:
        """Deregister every service and check of this agent."""
        for consul_id in self.get("/v1/agent/services"):
            self.put(f"/v1/agent/service/deregister/{quote(consul_id, safe='')}")
        for check_id in self.get("/v1/agent/checks"):
            self.put(f"/v1/agent/check/deregister/{quote(check_id, safe='')}")

    def create_token(self, rules: str) -> str:
        """Create a policy of these ACL rules (HCL), and a token that has only this policy; return the token.

        Returns when the agent accepts it: a client agent may have cached that there is no such token.
        """
        name = f"policy-{uuid.uuid4().hex[:12]}"
        self.put("/v1/acl/policy", {"Name": name, "Rules": rules})
        token: str = self.put("/v1/acl/token", {"Policies": [{"Name": name}]})["SecretID"]
        eventually(
            lambda: self.request("GET", "/v1/acl/token/self", token=token).status == 200, because="the token is known"
        )
        return token

    def revoke_token(self, token: str) -> None:
        """Delete a token."""
        accessor = self.request("GET", "/v1/acl/token/self", token=token).json()["AccessorID"]
        assert self.request("DELETE", f"/v1/acl/token/{accessor}").status == 200

    def _configuration(self) -> dict[str, object]:
        version = _version(self._binary)
        configuration: dict[str, object] = {
            "node_name": self.node_name,
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": True,
            "log_level": "info",
            # Elections in a test should take what they must, not five times as long.
            "performance": {"raft_multiplier": 1},
            # 200 by default, fewer than a load test on one host opens.
            "limits": {"http_max_conns_per_client": 5000},
            "ports": {
                "http": self.http_port,
                "https": self.https_port,
                "grpc": -1,
                "dns": self.dns_port,
                "serf_lan": self._serf_port,
                "serf_wan": -1,
                "server": self._server_port,
                **({"grpc_tls": -1} if version >= (1, 14) else {}),
            },
        }
        if self.keeps_data:
            configuration["data_dir"] = str(self.directory / "data")
            if self.is_client:
                configuration |= {"retry_join": self._join, "retry_interval": "1s"}
            else:
                configuration |= {"server": True, "bootstrap_expect": 1}
        if self.has_acl:
            management = "initial_management" if version >= (1, 11) else "master"
            configuration["acl"] = {
                "enabled": True,
                "default_policy": "deny",
                "tokens": {management: MANAGEMENT_TOKEN, "agent": MANAGEMENT_TOKEN},
            }
        if self.tls:
            files = {
                "ca_file": str(self.tls.ca),
                "cert_file": str(self.tls.server_cert),
                "key_file": str(self.tls.server_key),
            }
            if version >= (1, 12):
                configuration["tls"] = {"defaults": files, "https": {"verify_incoming": True}}
            else:
                configuration |= files | {"verify_incoming_https": True}
        return configuration | self._settings


def _exchange(connection: http.client.HTTPConnection, method: str, path: str, body: object, token: str) -> Answer:
    headers = {"X-Consul-Token": token} if token else {}
    payload = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, payload, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read(), dict(response.getheaders()))
    except http.client.HTTPException as error:
        raise ConnectionError(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()


class ConsulCluster:
    """A server, which keeps its data, and client agents: what a real deployment has on its hosts."""

    def __init__(self, directory: Path, *, agents: int = 1, acl: bool = False) -> None:
        self.server = ConsulAgent(directory / "server", acl=acl, keeps_data=True)
        self.agents = [
            ConsulAgent(directory / f"agent-{number}", acl=acl, join=[self.server.serf_address])
            for number in range(1, agents + 1)
        ]

    def __enter__(self) -> ConsulCluster:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start all, and wait until the server lists every agent as healthy."""
        self.server.start()
        for agent in self.agents:
            agent.start(wait=False)
        for agent in self.agents:
            agent.wait_ready()

    def stop(self) -> None:
        """Kill all: leaving politely takes seconds, and nobody looks any more."""
        for each in (*self.agents, self.server):
            each.kill()
