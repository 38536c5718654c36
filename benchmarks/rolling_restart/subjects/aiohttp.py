"""aiohttp: ``web.run_app`` with the deregistration in ``on_shutdown``, or the adapter."""

from __future__ import annotations

import asyncio

from aiohttp import web

from benchmarks.rolling_restart import subject
from registry_drain import Service
from registry_drain.servers.aiohttp_server import AiohttpServer

CLIENT = "http"
IGNORING_LIMIT = 0.0


async def echo(request: web.Request) -> web.Response:
    """Serve one request."""
    body = await request.read()
    await asyncio.sleep(subject.WORK_S)
    return web.Response(body=body)


def new_app() -> web.Application:
    """Return the application."""
    app = web.Application()
    app.router.add_post("/", echo)
    return app


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    app = new_app()
    if given.is_drained:
        server = AiohttpServer(app, subject.HOST, given.port, access_log=None)
        service = Service(server, given.registry, service=given.service, budget=subject.BUDGET)
        subject.say_ready_when_started(service)
        service.run()
        return
    deregister = subject.naive_registration(given)

    async def leave(_: web.Application) -> None:
        await asyncio.to_thread(deregister)

    app.on_shutdown.append(leave)
    # print= is called once the sites accept.
    web.run_app(app, host=subject.HOST, port=given.port, access_log=None, print=lambda _: subject.say_ready())


if __name__ == "__main__":
    main()
