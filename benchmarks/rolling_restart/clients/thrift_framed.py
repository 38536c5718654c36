"""The same in frames."""

from __future__ import annotations

from benchmarks.rolling_restart.clients import thrift


class Client(thrift.Client):
    """One connection; see :class:`benchmarks.rolling_restart.load.Client`."""

    is_framed = True
