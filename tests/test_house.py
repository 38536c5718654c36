"""The house: imports point one way, optional libraries stay in their own rooms, and importing changes nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import registry_drain

ROOT = Path(registry_drain.__file__).parent
FACTS = {"instance", "errors", "clock", "phases"}
MAY_IMPORT: dict[str, set[str]] = {
    # room: what it may import, by longest prefix, itself not named. Nothing is said twice: what is not here is refused.
    "errors": set(),
    "clock": set(),
    "instance": {"errors"},
    "phases": set(),
    "registries": FACTS,
    "servers": FACTS,
    "shutdown": FACTS | {"registries.base", "servers.base", "servers.in_flight"},
    "persistent_registration": FACTS
    | {"registries.abilities", "registries.base", "registries.retry", "shutdown.events"},
    "handover": FACTS | {"persistent_registration", "shutdown", "registries.base", "servers.listener"},
    "service": FACTS
    | {
        "handover",
        "servers.listener",
        "persistent_registration",
        "shutdown",
        "registries.base",
        "registries.url",
        "servers.base",
        "servers.current_request",
    },
    "async_service": FACTS
    | {
        "handover",
        "persistent_registration",
        "service",
        "shutdown",
        "registries.base",
        "servers.base",
        "servers.current_request",
    },
    "hosted": FACTS
    | {
        "async_service",
        "persistent_registration",
        "registries.base",
        "registries.url",
        "servers",
        "service",
        "shutdown",
    },
    "cli": FACTS | {"service", "shutdown", "registries", "servers", ""},
    "__main__": {"cli"},
    "": FACTS
    | {
        "service",
        "async_service",
        "handover",
        "servers.listener",
        "shutdown",
        "registries.base",
        "registries.url",
        "servers.base",
    },
    "testing": FACTS
    | {"registries.abilities", "registries.base", "registries.retry", "servers.base", "servers.in_flight"},
}
"""``""`` is the package itself, ``registry_drain/__init__.py``."""
SHARED = {
    "registries": {"abilities", "base", "membership", "retry", "url"},
    "servers": {
        "base",
        "in_flight",
        "loop_requests",
        "listener",
        "connections",
        "current_request",
        "stop_state",
        "event_loop",
        "http",
        "asyncio_listeners",
        "asgi_adapter",
        "socket_server",
    },
}
"""What every backend and every adapter may use; the rest of these rooms belongs to one backend or adapter each."""
OPTIONAL = {
    "consul": {"registries.consul"},
    "requests": {"registries.consul"},
    "kazoo": {"registries.zookeeper", "cli.demo"},
    "thrift": {"servers.thrift_server", "cli.demo"},
    "thriftpy2": {"servers.thriftpy2"},
    "aiohttp": {"servers.aiohttp_server", "hosted.aiohttp"},
    "uvicorn": {"servers.uvicorn_server"},
    "hypercorn": {"servers.hypercorn_server"},
    "gunicorn": {"hosted.gunicorn"},
    "grpc": {"servers.grpc_server"},
    "grpc_health": {"servers.grpc_server"},
    "rpyc": {"servers.rpyc_server"},
    "rich": {"cli"},
    "shtab": {"cli.completion"},
}
"""Which modules may import an optional library, by prefix."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imports(module: str) -> Iterator[str]:
    """Yield what a module imports anywhere in it, functions included, with full names."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import: absolute ones can be searched for"
            assert node.module is not None
            for alias in node.names:
                # `from package import module` names a module, `from module import name` does not.
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("registry_drain.") in MODULES else node.module


def own_imports(module: str) -> set[str]:
    """Return what a module imports of this package, without the package's name."""
    return {
        name.removeprefix("registry_drain").removeprefix(".")
        for name in imports(module)
        if name.partition(".")[0] == "registry_drain"
    }


def is_below(module: str, prefix: str) -> bool:
    """Return whether ``module`` is ``prefix`` or inside it."""
    return module == prefix or (prefix != "" and module.startswith(prefix + "."))


def family(module: str) -> str:
    """Return which backend or adapter a module belongs to: ``registries.consul.http`` is consul's."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """A module imports its own room and the rooms that it may, and no other."""
    room = module.partition(".")[0]
    assert room in MAY_IMPORT, f"{module} is in no room of this house: give it one, and say here what it may import"
    for name in own_imports(module):
        allowed = is_below(name, room) or any(is_below(name, prefix) for prefix in MAY_IMPORT[room])
        assert allowed, f"{module} imports registry_drain.{name}: {room} may import only {sorted(MAY_IMPORT[room])}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.partition(".")[0] in SHARED])
def test_backends_and_adapters_do_not_know_each_other(module: str) -> None:
    """A backend uses what all share and its own files; what all share uses no backend."""
    room = module.partition(".")[0]
    for name in own_imports(module):
        if is_below(name, room) and "." in name:
            part = name.split(".")[1]
            is_own = family(name) == family(module) and module.split(".")[1] not in SHARED[room]
            assert part in SHARED[room] or is_own, f"{module} imports registry_drain.{name}, which is another's"


@pytest.mark.parametrize("module", MODULES)
def test_optional_libraries_stay_in_their_rooms(module: str) -> None:
    """Only a library's own adapter imports it."""
    for name in imports(module):
        library = name.partition(".")[0]
        if library in OPTIONAL:
            rooms = OPTIONAL[library]
            assert any(module.startswith(room) for room in rooms), f"{module} imports {name}: only {rooms} may"


def test_every_module_says_what_it_is() -> None:
    """Each file opens with a docstring, and each room is one of the map's."""
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{module} has no docstring"


PROBE = """
import json, logging, signal, sys, threading
def state():
    handlers = [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]
    loggers = [logging.getLogger()] + [
        logger for logger in logging.Logger.manager.loggerDict.values() if isinstance(logger, logging.Logger)
    ]
    return {
        "signal handlers": handlers,
        "threads": len(threading.enumerate()),
        "thread hook": str(threading.excepthook),
        "exception hook": str(sys.excepthook),
        "log handlers": [str(handler) for logger in loggers for handler in logger.handlers],
        "log levels": sorted({logger.level for logger in loggers}),
    }
# Their state at rest, from before: a logger that is merely asked for has no handler and level 0.
logging.getLogger("somebody's")
before = state()
import registry_drain
registry_drain.serve, registry_drain.open_registry
print(json.dumps([before, state(), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_importing_changes_nothing() -> None:
    """No optional library, no thread, no signal handler, no logging configuration comes with the import."""
    out = subprocess.run([sys.executable, "-c", PROBE], stdout=subprocess.PIPE, text=True, check=True).stdout
    before, after, modules = json.loads(out)
    assert after == before
    assert not {"consul", "kazoo", "thrift", "rich", "requests", "tenacity", "pytest", "asyncio"} & set(modules)


def test_the_house_rules_notice() -> None:
    """The reader of imports sees those in functions, and modules imported by name from a package."""
    assert "registries.local.file" in own_imports("registries.local.directory")
    assert "registries.base" in own_imports("registries.url")
    assert family("registries.consul.http") == "consul"
    assert family("servers.thrift_server") == "thrift_server"


def test_every_public_name_can_be_imported() -> None:
    """The package imports its public names when they are first used: each of them is really there, and is listed."""
    for name in registry_drain.__all__:
        assert getattr(registry_drain, name) is not None
    assert set(registry_drain.__all__) <= set(dir(registry_drain))
    with pytest.raises(AttributeError, match="no attribute 'serv'"):
        registry_drain.serv  # type: ignore[attr-defined]  # noqa: B018
