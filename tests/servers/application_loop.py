"""An application's event loop, which is not the adapter's own, and an adapter in it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from registry_drain import Deadline
from registry_drain.servers.asyncio_streams import AsyncioServer
from registry_drain.servers.base import ListenerClosure
from registry_drain.servers.in_flight import InFlight, InFlightRequest
from registry_drain.servers.thriftpy2 import Thriftpy2AioServer


class InApplicationsLoop:
    """An adapter in a loop that is not its own, which ends after it: a :class:`DrainableServer`."""

    def __init__(
        self, adapter: AsyncioServer | Thriftpy2AioServer, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Run a loop in a thread, as an application would in its main thread."""
        self._adapter = adapter
        self._loop = loop or asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="application")
        self._thread.start()
        adapter.use_loop(self._loop)

    def _run(self) -> None:
        executor = ThreadPoolExecutor(thread_name_prefix="application")
        self._loop.set_default_executor(executor)
        self._loop.run_forever()
        executor.shutdown(wait=False)
        self._loop.close()

    @property
    def in_flight(self) -> InFlight:
        """The adapter's."""
        return self._adapter.in_flight

    def start(self) -> tuple[str, int]:
        """Start the adapter."""
        return self._adapter.start()

    def close_listener(self, deadline: Deadline) -> ListenerClosure:
        """Close its listener."""
        return self._adapter.close_listener(deadline)

    def drain(self, deadline: Deadline) -> bool:
        """Drain it."""
        return self._adapter.drain(deadline)

    def cut_off(self) -> tuple[InFlightRequest, ...]:
        """Cut off what is left, and end the application. Once more: its loop is closed."""
        cut = self._adapter.cut_off()
        if not self._loop.is_closed():
            assert self._loop.is_running(), "the application's loop is left alone"
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        return cut
