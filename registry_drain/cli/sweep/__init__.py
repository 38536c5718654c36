"""``registry-drain sweep``: finds instances that are dead, says how it knows, and removes them.

- :mod:`registry_drain.cli.sweep.command`: the arguments
- :mod:`registry_drain.cli.sweep.sweeping`: one sweep: look, probe, look again, remove, report
- :mod:`registry_drain.cli.sweep.evidence`: what counts as dead, and what is left alone all the same
- :mod:`registry_drain.cli.sweep.probes`: connecting to addresses, many at a time, several times each
- :mod:`registry_drain.cli.sweep.report`: what was found and done, as JSON and as a table
"""
