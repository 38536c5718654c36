"""What is drained: one adapter for each server library.

- ``base`` holds the protocol that an adapter implements. Adapters have the name of their library; ``group`` makes one
  of several.
- Their parts, for other adapters too: ``in_flight`` counts requests, ``listener`` closes a listening socket without
  resetting what waits in its backlog, ``connections`` knows which connections are idle, and closes them politely,
  ``event_loop`` is where asyncio servers live, ``asyncio_listeners`` closes their listeners, ``asgi_adapter`` is what
  those that serve ASGI have in common, ``http`` the middlewares.
- ``current_request`` is for request handlers: name the request, mark it, see the stop coming; ``stop_state`` is what
  there is to see.
"""
