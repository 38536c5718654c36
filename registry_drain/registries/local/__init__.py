"""A directory as a registry: ``local:///directory``, no server needed; see docs/local.md for its options.

- ``registry``: opens, lists; joins the rest
- ``file``: one instance; ``lock``: what keeps it alive; ``directory``: all of them, under one lock
- ``watch``: looks at them again and again
"""

from registry_drain.registries.local.registry import LocalRegistration, LocalRegistry, open_local

__all__ = ["LocalRegistration", "LocalRegistry", "open_local"]
