"""The cluster of ``docker-compose.yml``: started, reached into, and taken away.

Theory of operation: everything goes through the ``docker`` command, as a person would do it; registries are read from
this host through the ports that the file publishes, and requests are counted by the file's own load clients. Every
cluster is a project of its own, with ports of its own: it disturbs nothing, and whatever it has made goes with it.

What ``docker`` needs to find an engine, and which images are used, stands in the environment: see ``.ci/engine``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from registry_drain.clock import Deadline
from registry_drain.errors import RegistryError
from registry_drain.registries.base import Registry, RegistryEntry
from registry_drain.registries.url import open_registry
from tests.support.processes import eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
UP_LIMIT_S = 300.0
COMMAND_LIMIT_S = 120.0
READ_LIMIT_S = 10.0
SIZE = 3
"""How many instances each service has."""

_PORTS = (
    "ZOOKEEPER_PORT",
    "ZOOKEEPER_PORT_2",
    "ZOOKEEPER_PORT_3",
    "CONSUL_PORT",
    "CONSUL_CALLERS_PORT",
    "CONSUL_SERVER_PORT",
    "PROXY_PORT",
)
_TALLY = re.compile(r"^(\d+) calls, (\d+) failed \((\d+) not connected\), ", re.MULTILINE)


class DockerError(Exception):
    """A ``docker`` command failed; its words."""


def docker(*arguments: str, environment: Mapping[str, str] | None = None, limit: float = COMMAND_LIMIT_S) -> str:
    """Run ``docker`` and return what it printed.

    Raises:
        DockerError: it failed, or did not end within ``limit`` seconds.
    """
    command = ["docker", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DockerError(f"{' '.join(command)}: not done within {limit:g} s") from error
    if done.returncode:
        raise DockerError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


@dataclass(frozen=True)
class Tally:
    """What a load client has counted so far.

    Attributes:
        calls: made.
        failed: of them.
        unconnected: of those that failed: nobody listened, so that they were certainly not served.
    """

    calls: int
    failed: int
    unconnected: int

    def since(self, before: Tally) -> Tally:
        """Return what was counted in between."""
        return Tally(self.calls - before.calls, self.failed - before.failed, self.unconnected - before.unconnected)


@dataclass(frozen=True)
class Container:
    """One container of a cluster; it keeps its name when it is restarted, and maybe not its address."""

    name: str

    def inspect(self) -> dict[str, Any]:
        """Return what the engine knows of it."""
        [found] = json.loads(docker("inspect", self.name))
        return dict(found)

    @property
    def address(self) -> str:
        """Its address in the cluster's network; empty while it has none."""
        networks = self.inspect()["NetworkSettings"]["Networks"]
        return next((str(each["IPAddress"]) for each in networks.values()), "")

    @property
    def is_healthy(self) -> bool:
        """Whether its health check passes."""
        state = self.inspect()["State"]
        return bool(state["Running"]) and state.get("Health", {}).get("Status", "healthy") == "healthy"

    def kill(self, signal: str = "KILL") -> None:
        """Send its first process a signal."""
        docker("kill", "--signal", signal, self.name)

    def stop(self) -> None:
        """Stop it, within the grace period that it was given."""
        docker("stop", self.name)

    def start(self) -> None:
        """Start it again; it may not be ready yet."""
        docker("start", self.name)

    def await_healthy(self) -> None:
        """Wait until its health check passes."""
        eventually(lambda: self.is_healthy, timeout=UP_LIMIT_S, interval=0.2)

    def await_exit(self, limit: float = COMMAND_LIMIT_S) -> int:
        """Wait until it has ended, and return its exit status."""
        return int(docker("wait", self.name, limit=limit))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Freeze all of its processes for the block."""
        docker("pause", self.name)
        try:
            yield
        finally:
            docker("unpause", self.name)

    @contextlib.contextmanager
    def cut_off_from(self, others: Iterable[Container]) -> Iterator[None]:
        """Let nothing from it reach the others for the block; its other neighbours notice nothing."""
        addresses = [other.address for other in others]
        image = str(self.inspect()["Config"]["Image"])
        # Beside it, in its network: a container that runs already is given no further capability.
        beside = ("--network", f"container:{self.name}", "--cap-add", "NET_ADMIN", "--user", "0", "--entrypoint", "sh")

        def route(what: str) -> None:
            script = "; ".join(f"ip route {what} blackhole {address}" for address in addresses)
            docker("run", "--rm", *beside, image, "-ec", script)

        route("add")
        try:
            yield
        finally:
            route("del")

    @contextlib.contextmanager
    def disconnected(self, network: str, alias: str) -> Iterator[None]:
        """Take it out of the network for the block."""
        docker("network", "disconnect", network, self.name)
        try:
            yield
        finally:
            docker("network", "connect", "--alias", alias, network, self.name)

    def log(self, *, since: float = 0.0) -> str:
        """Return what it has printed since then (UNIX seconds)."""
        done = subprocess.run(
            ["docker", "logs", "--since", f"{since:.3f}", self.name],
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=True,
        )
        return done.stdout + done.stderr


class Cluster:
    """As a context: up and ready inside, and nothing of it left behind.

    Args:
        profiles: of the file: ``consul``, ``zookeeper`` or both.
        variables: further ones that the file knows.
    """

    def __init__(self, profiles: Sequence[str], **variables: str) -> None:
        self.project = f"registry-drain-{os.getpid()}-{time.monotonic_ns() % 100_000}"
        self.network = f"{self.project}_default"
        self._profiles = tuple(profiles)
        self._environment = {name: str(free_port()) for name in _PORTS}
        self._environment.update(variables, COMPOSE_PROFILES=",".join(profiles))
        self._registries: dict[str, Registry] = {}

    def compose(self, *arguments: str, limit: float = COMMAND_LIMIT_S) -> str:
        """Run ``docker compose`` on it."""
        return docker("compose", "--project-name", self.project, *arguments, environment=self._environment, limit=limit)

    def __enter__(self) -> Cluster:
        """Bring it up, and wait until all of it is ready."""
        try:
            self.compose("up", "--detach", "--build", "--wait", "--quiet-pull", limit=UP_LIMIT_S)
            for profile in self._profiles:
                self.await_size(profile)
        except BaseException:
            self._take_away()
            raise
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self._take_away()

    def _take_away(self) -> None:
        for registry in self._registries.values():
            registry.close()
        self._registries.clear()
        self.compose("down", "--volumes", "--timeout", "1", "--remove-orphans", limit=UP_LIMIT_S)

    def port(self, name: str) -> int:
        """Return the port of this host that a variable of the file publishes."""
        return int(self._environment[name])

    def containers(self, service: str) -> list[Container]:
        """Return the containers of a service, stopped ones included, in the order of their numbers."""
        names = self.compose("ps", "--all", "--format", "{{.Name}}", service).split()
        return [Container(name) for name in sorted(names)]

    def container(self, service: str) -> Container:
        """Return the only container of a service."""
        [found] = self.containers(service)
        return found

    def registry_url(self, which: str, consul_port: str = "CONSUL_CALLERS_PORT") -> str:
        """Return the URL of the registry, seen from this host; Consul's is the agent behind that port."""
        if which == "consul":
            return f"consul://127.0.0.1:{self.port(consul_port)}"
        hosts = ",".join(f"127.0.0.1:{self.port(name)}" for name in _PORTS[:3])
        return f"zookeeper://{hosts}/services"

    def registry(self, which: str) -> Registry:
        """Return the registry as callers see it, opened once."""
        if which not in self._registries:
            self._registries[which] = open_registry(self.registry_url(which))
        return self._registries[which]

    def listed(self, which: str, service: str = "calculator") -> list[RegistryEntry]:
        """Return what a consistent read lists of a service.

        Raises:
            RegistryError: the registry does not answer.
        """
        return list(self.registry(which).entries(service, Deadline.after(READ_LIMIT_S)))

    def await_size(self, which: str, size: int = SIZE, service: str = "calculator") -> None:
        """Wait until so many live instances are listed."""

        def has_size() -> bool:
            try:
                return sum(entry.is_live is not False for entry in self.listed(which, service)) == size
            except RegistryError:
                return False

        eventually(has_size, timeout=UP_LIMIT_S, interval=0.2)

    def tally(self, which: str) -> Tally:
        """Return what the load client of a registry counts next: what it has printed before may be a second old."""
        since = time.time()

        def latest() -> Tally | None:
            found = _TALLY.findall(self.container(f"load-{which}").log(since=since))
            return Tally(*map(int, found[-1])) if found else None

        found = eventually(latest, interval=0.2)
        assert found is not None
        return found
