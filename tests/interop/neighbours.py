"""The processes that are not ours, as ``.ci/servers`` left them, and what they say."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.processes import READY_TIMEOUT, SERVERS_BIN, ManagedProcess, eventually, free_port


def find(name: str) -> Path:
    """Return a program of PATH or of ``.ci/servers``; without it the test is skipped, and in CI it fails."""
    fetched = SERVERS_BIN / name
    found = str(fetched) if fetched.exists() else shutil.which(name)
    if found is None:
        message = f"no {name} on this machine: `.ci/servers` fetches one"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return Path(found)


class CuratorNeighbour:
    """A Java process with Apache Curator's ServiceDiscovery, which follows a service and may be an instance of it."""

    def __init__(
        self, directory: Path, hosts: str, base: str, service: str, instance: tuple[str, str, int] | None = None
    ) -> None:
        program = find("curator-java")
        self._log = directory / "curator.log"
        arguments = [hosts, base, service, *map(str, instance or ())]
        self.process = ManagedProcess(
            [program, Path(__file__).with_name("CuratorNeighbour.java"), *arguments], log=self._log
        )
        eventually(lambda: self._last("query") is not None, timeout=READY_TIMEOUT, because="Curator follows")

    def __enter__(self) -> CuratorNeighbour:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill: its end is not what is looked at."""
        self.process.kill()

    def sees(self, *instances: str) -> None:
        """Wait until its cache, and its query, hold exactly these: ``id@address:port=payload``."""
        expected = " ".join(sorted(instances))
        eventually(
            lambda: self._last("cache") == expected and self._last("query") == expected,
            because=f"Curator's cache and query hold {expected!r}",
        )

    def _last(self, source: str) -> str | None:
        assert self.process.is_running, self.process.output_tail()
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == source]
        return found[-1] if found else None


class PrometheusNeighbour:
    """A Prometheus that finds its targets by its own service discoveries, and scrapes none of them in time.

    ``discoveries`` is what stands in its configuration for each job: ``{"job": {"nerve_sd_configs": [{...}]}}``.
    """

    def __init__(self, directory: Path, discoveries: Mapping[str, Mapping[str, object]]) -> None:
        program = find("prometheus")
        self._port = free_port()
        path = directory / "prometheus.yml"
        common = {"scrape_interval": "1h", "scrape_timeout": "1s"}
        jobs = [{"job_name": name, **common, **discovery} for name, discovery in discoveries.items()]
        # JSON is YAML.
        path.write_text(json.dumps({"scrape_configs": jobs}), encoding="utf-8")
        self.process = ManagedProcess(
            [
                program,
                f"--config.file={path}",
                f"--storage.tsdb.path={directory / 'prometheus-data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            log=directory / "prometheus.log",
        )
        eventually(self._is_ready, timeout=READY_TIMEOUT, because="Prometheus is ready")

    def __enter__(self) -> PrometheusNeighbour:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill: its end is not what is looked at."""
        self.process.kill()

    def _is_ready(self) -> bool:
        assert self.process.is_running, self.process.output_tail()
        return self._targets() is not None

    def _targets(self) -> list[dict[str, str]]:
        """Return the labels of each target, as they were discovered."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/targets", timeout=10) as answer:
            return [each["discoveredLabels"] for each in json.load(answer)["data"]["activeTargets"]]

    def sees(self, targets: set[tuple[str, str]]) -> None:
        """Wait until it has exactly these: job and address. It applies what it finds every 5 s."""
        eventually(
            lambda: {(each["job"], each["__address__"]) for each in self._targets()} == targets,
            because=f"the targets of Prometheus are {targets}",
        )

    def labels(self, job: str) -> list[dict[str, str]]:
        """Return the labels of one job's targets."""
        return [each for each in self._targets() if each["job"] == job]
