"""One module for each protocol, with a class ``Client`` as :class:`benchmarks.rolling_restart.load.Client` says."""
