"""Stop a server so that no request fails: leave the registry first, drain, then tell everybody else.

The map of the house, from the outside in:

- :mod:`registry_drain.service`: :func:`serve` and :class:`Service` join a server, its registries and its stop;
  :mod:`registry_drain.async_service`: :func:`serve_async` and :class:`AsyncService` for asyncio applications.
- :mod:`registry_drain.hosted`: services whose process is a server's own command line: gunicorn, ``uvicorn app:app``.
- :mod:`registry_drain.handover`: restarting by handing sockets and registrations to a new process.
- :mod:`registry_drain.shutdown`: the stop: phases, budget, observers, report, signals. Knows no registry and no server.
- :mod:`registry_drain.registries`: where instances are listed: Consul, ZooKeeper, a local directory; by URL.
- :mod:`registry_drain.servers`: what is drained: one adapter for each server library.
- :mod:`registry_drain.persistent_registration`: an instance's membership of one registry, which a service keeps trying.
- :mod:`registry_drain.instance`, ``phases``, ``errors``, ``clock``: what all of them speak of.
- :mod:`registry_drain.cli`: the commands. :mod:`registry_drain.testing`: for your own tests.

Importing it changes nothing in the process: no signal handler, no thread, no logging configuration.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from registry_drain.async_service import AsyncService, serve_async
    from registry_drain.clock import Clock, Deadline
    from registry_drain.errors import ConfigurationError, RegistryDrainError, RegistryError
    from registry_drain.handover.settings import Handover
    from registry_drain.instance import ServiceInstance
    from registry_drain.registries.url import open_registry
    from registry_drain.servers.listener.activation import listening_socket
    from registry_drain.service import Service, serve
    from registry_drain.shutdown.budget import StopBudget
    from registry_drain.shutdown.observers import ShutdownObserver, When
    from registry_drain.shutdown.report import ShutdownReport
    from registry_drain.shutdown.routine import StopRoutine

__version__ = "0.1.0"

_HOMES = {
    "AsyncService": "async_service",
    "serve_async": "async_service",
    "Clock": "clock",
    "Deadline": "clock",
    "ConfigurationError": "errors",
    "RegistryDrainError": "errors",
    "RegistryError": "errors",
    "Handover": "handover.settings",
    "ServiceInstance": "instance",
    "open_registry": "registries.url",
    "listening_socket": "servers.listener.activation",
    "Service": "service",
    "serve": "service",
    "StopBudget": "shutdown.budget",
    "ShutdownObserver": "shutdown.observers",
    "When": "shutdown.observers",
    "ShutdownReport": "shutdown.report",
    "StopRoutine": "shutdown.routine",
}
"""Where each public name lives. They are imported when first used, so that a command starts at once."""

__all__ = [
    "AsyncService",
    "Clock",
    "ConfigurationError",
    "Deadline",
    "Handover",
    "RegistryDrainError",
    "RegistryError",
    "Service",
    "ServiceInstance",
    "ShutdownObserver",
    "ShutdownReport",
    "StopBudget",
    "StopRoutine",
    "When",
    "__version__",
    "listening_socket",
    "open_registry",
    "serve",
    "serve_async",
]

if not TYPE_CHECKING:  # a type checker would take any misspelled name for a public one

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        """Show the public names before they are imported, too."""
        return sorted({*globals(), *__all__})
