"""One program for each kind of server: an echo that takes :data:`benchmarks.rolling_restart.subject.WORK_S`.

Each is run as ``python -m benchmarks.rolling_restart.subjects.NAME`` with the options of
:func:`benchmarks.rolling_restart.subject.options`, and says in module constants how it is called:

- ``CLIENT``: the module in ``clients`` that speaks its protocol;
- ``IGNORING_LIMIT``: the share of connections of clients which ignore the registry that may fail when drained.
- ``KEEPS_CONNECTIONS``: whether a connection carries more than one request.
"""
