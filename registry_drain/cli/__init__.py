"""The commands: ``registry-drain`` and ``deregister``. A room for each, and two for what they share.

- :mod:`~registry_drain.cli.main`: ``registry-drain COMMAND``, which imports only the command that is asked for
- :mod:`~registry_drain.cli.deregister`, :mod:`~registry_drain.cli.drain`, :mod:`~registry_drain.cli.listing`,
  :mod:`~registry_drain.cli.sweep`, :mod:`~registry_drain.cli.demo`, :mod:`~registry_drain.cli.schema`: each with a
  ``command``, which has ``main`` and ``make_parser``; and :mod:`~registry_drain.cli.completion`
- :mod:`~registry_drain.cli.command`: one run: arguments in, one status, one JSON object, one line of complaint out
- :mod:`~registry_drain.cli.choosing`: which instances are meant, and what it takes before they are touched

Nothing here is imported by the library itself.
"""
