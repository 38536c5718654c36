"""The promises of :mod:`registry_drain.registries.base` as tests, which every registry passes, real or fake.

Use it for your own backend by subclassing it in a test module::

    class TestMyRegistry(RegistryContract):
        def new_registry(self) -> Registry:
            return open_registry("mine://127.0.0.1:4711")

A server comes in through an autouse fixture of your class that sets an attribute. Every failure names the promise that
was broken. The suite needs only a runner that calls ``test_*`` methods and knows :class:`unittest.SkipTest`, as pytest
and unittest do.
"""

from __future__ import annotations

from registry_drain.testing.registry_promises.handing_over import HandingOverPromises
from registry_drain.testing.registry_promises.registering import RegisteringPromises
from registry_drain.testing.registry_promises.removed_by_operators import RemovedByOperatorPromises
from registry_drain.testing.registry_promises.removing import RemovingPromises
from registry_drain.testing.registry_promises.stopping import StoppingPromises
from registry_drain.testing.registry_promises.watching import WatchingPromises


class RegistryContract(
    RegisteringPromises,
    StoppingPromises,
    RemovingPromises,
    WatchingPromises,
    HandingOverPromises,
    RemovedByOperatorPromises,
):
    """Every promise. Override ``new_registry``, and what else your registry needs.

    See :class:`registry_drain.testing.registry_promises.subject.RegistrySubject` for the attributes and hooks.
    """
