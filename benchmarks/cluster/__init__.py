"""The cluster of ``docker-compose.yml`` under load, and what faults of a real cluster do to it.

``compose`` starts it and reaches into it, ``stopping`` watches one instance that stops, ``restarts`` restarts them all,
``faults`` breaks registries, agents and the network meanwhile, and ``__main__`` prints what came of it.
"""
