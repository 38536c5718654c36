"""The application's own lifespan, spoken to by us in the server's place."""

from __future__ import annotations

import asyncio
import logging

from registry_drain.servers.http.asgi_types import ASGIApplication, Message, Scope

logger = logging.getLogger(__name__)

_COMPLETE = ".complete"


class InnerLifespan:
    """Runs the lifespan of ``app`` in a task of its own. For one event loop.

    An application that raises before its startup is complete has no lifespan (ASGI specification, lifespan, 2.0); for
    it every answer is "complete".
    """

    def __init__(self, app: ASGIApplication, scope: Scope) -> None:
        self._app = app
        self._scope = scope
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._is_supported = True

    async def startup(self) -> Message:
        """Let the application start; return its answer: complete, or failed."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        return await self._ask("lifespan.startup")

    async def shutdown(self) -> Message:
        """Let the application end; return its answer."""
        return await self._ask("lifespan.shutdown")

    async def _run(self) -> None:
        await self._app(self._scope, self._to_app.get, self._from_app.put)

    async def _ask(self, what: str) -> Message:
        assert self._task is not None  # noqa: S101 - for the type checker: startup comes first
        if not self._is_supported:
            return {"type": f"{what}{_COMPLETE}"}
        await self._to_app.put({"type": what})
        answering = asyncio.ensure_future(self._from_app.get())
        await asyncio.wait({answering, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        answering.cancel()
        self._is_supported = False
        error = self._task.exception() if not self._task.cancelled() else None
        if error is not None and what != "lifespan.startup":
            logger.error("the application's lifespan failed: %r", error)
        return {"type": f"{what}{_COMPLETE}"}
