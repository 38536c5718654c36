"""The configuration file's side: :func:`drain` sets the hooks, and chains those that stand there."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

from registry_drain.errors import ConfigurationError
from registry_drain.hosted.gunicorn.integration import OURS, Integration, Settings
from registry_drain.hosted.gunicorn.worker import OF_THE_USER
from registry_drain.registries.base import Registry
from registry_drain.shutdown.budget import StopBudget
from registry_drain.shutdown.events import EventSink, log_event
from registry_drain.shutdown.leaving import check_soft_drain
from registry_drain.shutdown.observers import ShutdownObserver

logger = logging.getLogger(__name__)

HOOKS = (
    "on_starting",
    "when_ready",
    "pre_fork",
    "post_worker_init",
    "pre_request",
    "post_request",
    "child_exit",
    "on_exit",
)

_Hook = Callable[..., object]


class _Process:
    """What this process has: a reload must find it again, and a worker inherits it."""

    integration: ClassVar[Integration | None] = None
    pid: ClassVar[int] = 0


def drain(
    namespace: MutableMapping[str, Any],
    *,
    registry: str | Registry | Sequence[str | Registry] = (),
    service: str = "",
    address: str = "",
    port: int | None = None,
    instance_id: str = "",
    metadata: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    budget: StopBudget | None = None,
    observers: Iterable[ShutdownObserver | Callable[[], object]] = (),
    sinks: Iterable[EventSink] = (log_event,),
    health_check_paths: Iterable[str] = (),
    readiness_path: str = "",
    soft_drain: float = 0.0,
) -> None:
    """Make this gunicorn leave its registries before it stops, and lose no request. The last line of the configuration.

    ::

        # gunicorn.conf.py
        from registry_drain.hosted.gunicorn import drain

        drain(globals(), registry="consul://localhost:8500", service="web", address="10.0.0.5")

    Nothing is opened or started before gunicorn itself is. All workers are one instance, which is registered once a
    worker serves, and deregistered by the stop of the master: SIGTERM, SIGINT or SIGQUIT stop it gracefully, whether
    the master alone or the whole process group gets them; a second one hurries, a third ends it at once. A worker that
    is recycled changes nothing.

    Args:
        namespace: ``globals()`` of the configuration file. Hooks that are defined in it are called as well.
        registry: see :func:`registry_drain.serve`.
        service: see there.
        address: see there; needed if gunicorn is bound to a wildcard or a Unix socket.
        port: see there; needed if gunicorn is bound to a Unix socket.
        instance_id: see there.
        metadata: see there.
        tags: see there.
        budget: of the stop; gunicorn's ``graceful_timeout`` must not be shorter than the drain may become.
        observers: see there; called in the master.
        sinks: see there; called in the master.
        health_check_paths: exact paths whose requests are no sign that callers still know this instance.
        readiness_path: a path that is answered here: 200, and 503 once the stop has begun.
        soft_drain: see :func:`registry_drain.serve`.

    Raises:
        ConfigurationError: there is a registry and no name for the service, or ``soft_drain`` does not fit the budget.
    """
    if registry and not service:
        raise ConfigurationError("drain(): a registry is given, but no service= name to register under")
    check_soft_drain(soft_drain, budget or StopBudget())
    settings = Settings(
        registry=registry,
        service={
            "service": service,
            "address": address,
            "port": port,
            "instance_id": instance_id,
            "metadata": dict(metadata or {}),
            "tags": tuple(tags),
            "soft_drain": soft_drain,
        },
        listeners={"observers": tuple(observers), "sinks": tuple(sinks)},
        budget=budget or StopBudget(),
        health_check_paths=tuple(health_check_paths),
        readiness_path=readiness_path,
        hooks=HOOKS,
    )
    integration = _Process.integration
    if integration is None or not (integration.is_started and _Process.pid == os.getpid()):
        integration = _Process.integration = Integration(settings)
        _Process.pid = os.getpid()
    elif integration.settings != settings:
        logger.warning("registry_drain: a reload changes nothing about the registration and the stop: restart for that")
    _set_hooks(namespace, integration)


def is_stopping() -> bool:
    """Whether the stop of this gunicorn has begun; in the master and in every worker. False without :func:`drain`."""
    return _Process.integration is not None and _Process.integration.is_stopping


def rejoin() -> None:
    """Register again wherever an operator has removed this gunicorn; in the master, or in a request of any worker.

    Returns at once: the master does it within some tenths of a second, and its log says what became of it.

    Raises:
        ConfigurationError: this process is no gunicorn with :func:`drain`.
    """
    if _Process.integration is None:
        raise ConfigurationError("rejoin(): this process is no gunicorn whose configuration calls drain()")
    _Process.integration.rejoin()


def _set_hooks(namespace: MutableMapping[str, Any], ours: Integration) -> None:
    users: dict[str, _Hook] = {name: namespace.get(name) or _nothing for name in HOOKS}

    # It may have two, three or four.
    parameters = len(inspect.signature(users["post_request"]).parameters) if namespace.get("post_request") else 0

    # gunicorn counts the parameters of each, so they are written out.
    def on_starting(server: Any) -> None:
        ours.on_starting(server)
        users["on_starting"](server)

    def when_ready(server: Any) -> None:
        users["when_ready"](server)
        ours.when_ready(server)

    def pre_fork(server: Any, worker: Any) -> None:
        ours.pre_fork(server, worker)
        users["pre_fork"](server, worker)

    def post_worker_init(worker: Any) -> None:
        users["post_worker_init"](worker)
        ours.post_worker_init(worker)

    def pre_request(worker: Any, req: Any) -> None:
        users["pre_request"](worker, req)
        ours.pre_request(req)

    def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
        ours.post_request(req)
        users["post_request"](*(worker, req, environ, resp)[:parameters])

    def child_exit(server: Any, worker: Any) -> None:
        ours.child_exit(worker)
        users["child_exit"](server, worker)

    def on_exit(server: Any) -> None:
        ours.on_exit()
        users["on_exit"](server)

    hooks: tuple[_Hook, ...] = (
        on_starting,
        when_ready,
        pre_fork,
        post_worker_init,
        pre_request,
        post_request,
        child_exit,
        on_exit,
    )
    setattr(pre_request, OF_THE_USER, namespace.get("pre_request"))
    setattr(post_request, OF_THE_USER, namespace.get("post_request"))
    for name, hook in zip(HOOKS, hooks, strict=True):
        setattr(hook, OURS, True)
        namespace[name] = hook


def _nothing(*_arguments: Any) -> None:
    """Stand for a hook that the user has not set."""
