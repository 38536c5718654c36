"""What is drained: one adapter for each server library.

- ``base`` holds the protocol that an adapter implements; ``thrift_server`` and ``socket_server`` are adapters.
- Their parts, for other adapters too: ``in_flight`` counts requests, ``listener`` closes a listening socket without
  resetting what waits in its backlog, ``connections`` knows which connections are idle, and closes them politely.
- ``current_request`` is for request handlers: name the request, mark it, see the drain coming.
"""
