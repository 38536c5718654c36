"""What is drained: one file per server library.

``base`` holds the protocol an adapter implements, ``in_flight`` counts requests, ``listener`` closes a listening socket
without resetting what waits in its backlog.
"""
