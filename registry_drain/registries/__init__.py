"""Where instances are listed: one file per backend, chosen by URL
(:func:`registry_drain.registries.url.open_registry`).

``base`` holds the protocols a backend implements, ``retry`` how its calls are retried inside a deadline.
"""
