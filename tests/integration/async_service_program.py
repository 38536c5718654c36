"""An asyncio service as a program of its own, for tests to signal: ``python -m`` this, with what else handles signals.

It says what happens on standard output, a line each: ``LISTENING port``, ``EVENT …`` for the stop's events, ``THEIRS
signal`` when a handler of somebody else's runs, ``INTERRUPTED`` or ``CANCELLED`` for what ends ``main``, and ``REPORT
{json}``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys

from registry_drain import AsyncService, StopBudget
from registry_drain.servers.asyncio_streams import AsyncioServer
from registry_drain.shutdown.events import Event, PhaseStarted
from registry_drain.shutdown.loop_signals import LOOK_EVERY


def say(line: str) -> None:
    """Write one line that the test waits for."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_event(event: Event) -> None:
    """Write one event of the stop: ``EVENT DRAINING`` when that phase starts, else its log line."""
    say(f"EVENT {event.phase.name}" if isinstance(event, PhaseStarted) else f"EVENT {event}")


async def wait_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve a request that does not end."""
    await reader.readline()
    say("SERVING")
    await asyncio.Event().wait()
    writer.close()


def install(kind: str, number: int) -> None:
    """Install a handler of somebody else's."""
    name = signal.Signals(number).name
    if kind == "loop":
        asyncio.get_running_loop().add_signal_handler(number, say, f"THEIRS {name}")
    elif kind == "signal":
        signal.signal(number, lambda *_: say(f"THEIRS {name}"))
    elif kind == "cancel":
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def main(options: argparse.Namespace) -> None:
    """Serve until stopped."""
    for number in (signal.SIGTERM, signal.SIGINT):
        install(options.before, number)
    service = AsyncService(
        AsyncioServer(wait_for_ever, "127.0.0.1", 0),
        budget=StopBudget(grace_period=20.0, floor=0.0, quiet_period=0.0),
        handle_signals=not options.no_signals,
        sinks=[say_event],
    )
    running = asyncio.ensure_future(service.run()) if options.after else None
    if running is not None:
        await service.wait_until_started()
        for number in (signal.SIGTERM, signal.SIGINT):
            install(options.after, number)
    saying = asyncio.ensure_future(say_started(service, LOOK_EVERY * 3 if options.after else 0))
    try:
        await (running or service.run())
    finally:
        await saying
        report = service.routine.report
        facts = {"reason": report.reason, "is_hurried": report.is_hurried, "phase": report.phase.name}
        say(f"REPORT {json.dumps(facts)}")


async def say_started(service: AsyncService, seconds: float) -> None:
    """Say it once handlers that were installed late have been found."""
    await service.wait_until_started()
    await asyncio.sleep(seconds)
    assert service.bound is not None
    say(f"LISTENING {service.bound[1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", default="")
    parser.add_argument("--after", default="")
    parser.add_argument("--no-signals", action="store_true")
    try:
        asyncio.run(main(parser.parse_args()))
    except KeyboardInterrupt:
        say("INTERRUPTED")
    except asyncio.CancelledError:
        say("CANCELLED")
