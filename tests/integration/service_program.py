"""A calculator service as a program of its own, for tests to signal, freeze and kill: ``python -m`` this, with options.

It says what happens on standard output, a line each: ``LISTENING port``, ``EVENT …`` for the stop's events, and
``REPORT {json}`` as the last.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
from collections.abc import Callable

from examples.thrift_calculator.server import Calculator, new_threaded_server
from registry_drain import Service, StopBudget, When
from registry_drain.errors import RegistryDrainError
from registry_drain.servers.thrift_server import ThriftServer
from registry_drain.shutdown.events import Event, PhaseStarted


class StoppableCalculator(Calculator):
    """A calculator whose ``divide`` may be told to do something first."""

    on_divide: Callable[[], object] = staticmethod(lambda: None)

    def divide(self, dividend: float, divisor: float) -> float:
        """Do that, then divide."""
        self.on_divide()
        return super().divide(dividend, divisor)


def say(line: str) -> None:
    """Write one line that the test waits for."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_event(event: Event) -> None:
    """Write one event of the stop: ``EVENT PROPAGATING`` when that phase starts, else its log line."""
    say(f"EVENT {event.phase.name}" if isinstance(event, PhaseStarted) else f"EVENT {event}")


def main() -> int:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--registry", action="append", default=[])
    parser.add_argument("--service", default="calculator")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--id", default="")
    parser.add_argument("--budget", type=json.loads, default={}, help="keyword arguments of StopBudget, as JSON")
    parser.add_argument("--hanging-observer", type=float, help="hangs for ever; its time limit in seconds")
    parser.add_argument("--stop-on-divide", action="store_true", help="the handler of divide() calls stop()")
    parser.add_argument("--stopping-observer", action="store_true")
    parser.add_argument("--deadlocked-thread", action="store_true")
    parser.add_argument("--debug", action="store_true", help="everything that any library logs")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO,
        format="LOG %(threadName)s %(message)s",
        stream=sys.stdout,
    )

    calculator = StoppableCalculator()
    server = ThriftServer(new_threaded_server(calculator, "127.0.0.1", options.port))
    service = Service(
        server,
        options.registry,
        service=options.service,
        instance_id=options.id,
        budget=StopBudget(**options.budget),
        sinks=[say_event],
    )
    service.notifier.add(lambda: say("OBSERVER draining"), name="on-draining", when=When.DRAINING_STARTS)
    if options.hanging_observer:
        service.notifier.add(threading.Event().wait, name="hanging", time_limit=options.hanging_observer)
    if options.stop_on_divide:
        calculator.on_divide = service.stop
    if options.stopping_observer:
        service.notifier.add(service.stop, name="stopping")
    service.notifier.add(lambda: say("OBSERVER drained"), name="last")
    if options.deadlocked_thread:
        threading.Thread(target=threading.Event().wait, name="somebody-deadlocked").start()

    def say_when_started() -> None:
        service.started.wait()
        say(f"LISTENING {service.bound[1] if service.bound else None}")

    threading.Thread(target=say_when_started, daemon=True).start()
    try:
        report = service.run()
    except RegistryDrainError as error:
        say(f"FAILED {error}")
        return 2
    say(f"REPORT {json.dumps(report.as_dict())}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
