"""``registry-drain schema``: what the commands' JSON holds, as JSON Schema (draft 2020-12).

- :mod:`registry_drain.cli.schema.command`: the command
- :mod:`registry_drain.cli.schema.documents`: one document for each command
- :mod:`registry_drain.cli.schema.parts`: what several of them have, an entry above all

The files in ``docs/schemas/`` are what the command prints. Members may be added to a document, so no schema forbids
those that it does not know.
"""
