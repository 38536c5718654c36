"""Services whose process belongs to a server's own command line: ``uvicorn app:app``, ``granian --workers 4 app:app``.

Everywhere else registry_drain runs the server. Here the server runs us: :func:`drained` wraps the application, learns
of the process by its lifespan, and stands between the stop signal and the server. ``gunicorn`` has a configuration
that is a program, and a room of its own here; ``aiohttp`` is what to call in place of its ``web.run_app``.

``app`` is the wrapper, ``settings`` what it was told, ``lifespan`` the application's own; ``stop`` is the stop of one
process; ``host`` finds out who the server is and how it is told to stop, ``server`` is its adapter; ``workers`` is what
the worker processes of one supervisor know of each other, ``shared_registration`` the one registration that they have,
``kept`` what its keeper holds, and ``rejoining`` what they tell each other of an operator's removal.
"""

from registry_drain.hosted.app import DrainedApp, drained

__all__ = ["DrainedApp", "drained"]
