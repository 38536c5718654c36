"""The order as a race: a prober that looks all the time never sees a closed listener that is still listed."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.integration.fleet import ServiceProcess, ended, listed
from tests.integration.test_rolling_restart import REGISTRIES, registry_url
from tests.support.processes import eventually


class Prober(threading.Thread):
    """Connects, and reads the registry whenever it is refused: an instance that refuses must not be listed."""

    def __init__(self, url: str, service: ServiceProcess) -> None:
        super().__init__(name="prober", daemon=True)
        self.violations: list[str] = []
        self.connects = 0
        self.refused = 0
        self._url = url
        self._service = service
        self._endpoint = service.endpoint
        self.enough = threading.Event()

    def run(self) -> None:
        """Probe until told that it is enough."""
        port = int(self._endpoint.rpartition(":")[2])
        while not self.enough.is_set():
            self._probe(port)

    def _probe(self, port: int) -> None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError as error:
            # Looked at after the refusal: an entry seen now was there when the connection was refused.
            entry = listed(self._url, self._service.service).get(self._endpoint)
            self.refused += 1
            if entry is not None and entry.is_live is not False:
                self.violations.append(f"{error} while listed as {entry}")
        else:
            self.connects += 1


@pytest.mark.parametrize("kind", REGISTRIES)
def test_never_refused_while_listed(kind: str, request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> None:
    """From before the signal until after the exit no connection is refused while the registry lists the instance."""
    url = registry_url(kind, request, tmp_path)
    service = ServiceProcess(url, unique, tmp_path / "log")
    with ended(service):
        service.wait_listed()
        prober = Prober(url, service)
        prober.start()
        try:
            eventually(lambda: prober.connects > 50, because="the prober probes")
            service.process.signal(signal.SIGTERM)
            service.process.wait(timeout=60)
            eventually(lambda: prober.refused > 5, because="the prober has seen the end")
        finally:
            prober.enough.set()
            prober.join()
    assert prober.violations == []
    assert service.report()["is_clean"]
