"""Where instances are listed: one package per backend, chosen by URL (``url.open_registry``).

``base`` holds the protocols that a backend implements, ``abilities`` those that it may implement, ``membership`` what
every registration of an instance has in common, ``retry`` how calls are retried inside a deadline.
"""
