"""The commands: ``registry-drain`` and ``deregister``. One file for each, and what they share.

- :mod:`registry_drain.cli.main`: ``registry-drain COMMAND``, which imports only the command that is asked for
- :mod:`registry_drain.cli.deregister`, ``list_command``, ``demo``: the commands
- :mod:`registry_drain.cli.invocation`: one run: arguments in, one status, one JSON object, one line of complaint out
- :mod:`registry_drain.cli.exit_status`: the statuses, and which error means which

Nothing here is imported by the library itself.
"""
