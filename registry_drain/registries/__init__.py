"""Where instances are listed: one package per backend, chosen by URL (``url.open_registry``).

``base`` holds the protocols that a backend implements, ``retry`` how its calls are retried inside a deadline.
"""
