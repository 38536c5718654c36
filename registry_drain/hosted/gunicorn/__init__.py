"""gunicorn: leave the registries before the workers are told to stop, and lose no request.

``config`` has :func:`drain`, which a configuration file calls; ``integration`` is what its hooks do in the master and
in the workers; ``server`` is the adapter, ``signals`` the master's handlers, ``worker`` what a worker does, ``gate``
its listener, ``board`` the memory that they share, and ``shared_in_flight`` what a worker writes there. gunicorn
itself is not imported: it imports us.
"""

from registry_drain.hosted.gunicorn.config import drain, is_stopping, rejoin

__all__ = ["drain", "is_stopping", "rejoin"]
