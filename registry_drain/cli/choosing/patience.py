"""Reading a registry that may be having a bad moment: try again until the time is up, and say why it takes so long."""

from registry_drain.cli.command.output import Output
from registry_drain.clock import Deadline
from registry_drain.errors import RegistryUnavailableError
from registry_drain.registries.base import Registry, RegistryEntry


def read_entries(registry: Registry, service: str | None, deadline: Deadline, output: Output) -> list[RegistryEntry]:
    """Return what is listed, after as many attempts as fit.

    Raises:
        RegistryUnavailableError: all of them failed; this is the last failure.
        PermissionRefusedError: see :meth:`Registry.entries`.
    """
    try:
        return list(registry.entries(service, deadline))
    except RegistryUnavailableError as error:
        if deadline.is_past:
            raise
        output.remark(f"{error}; trying for {deadline.remaining():.0f} s more")
    # Only now, because most commands never need it and it doubles their start-up.
    from registry_drain.registries.retry import retrying

    for attempt in retrying(deadline):
        with attempt:
            found = list(registry.entries(service, deadline))
    return found
