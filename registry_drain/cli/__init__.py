"""The commands: ``registry-drain`` and ``deregister``. One file for each, and what they share.

- :mod:`registry_drain.cli.main`: ``registry-drain COMMAND``, which imports only the command that is asked for
- :mod:`registry_drain.cli.deregister`, ``drain``, ``list_command``, ``sweep``, ``demo``, ``schema``, ``completion``:
  the commands; each has ``main`` and ``make_parser``
- :mod:`registry_drain.cli.critical_since`: since when an instance has been critical, from one run to the next
- :mod:`registry_drain.cli.invocation`: one run: arguments in, one status, one JSON object, one line of complaint out
- :mod:`registry_drain.cli.exit_status`: the statuses, and which error means which

Nothing here is imported by the library itself.
"""
