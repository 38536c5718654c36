"""A directory as a registry: ``local:///directory``, no server needed; see docs/local.md for its options.

- ``registry``: opens, lists, removes others'; joins the rest; ``registration``: one's own instance
- ``file``: one instance; ``lock``: what keeps it alive; ``directory``: all of them, under one lock
- ``watch``: looks at them again and again
"""

from registry_drain.registries.local.registration import LocalRegistration
from registry_drain.registries.local.registry import LocalRegistry, open_local

__all__ = ["LocalRegistration", "LocalRegistry", "open_local"]
