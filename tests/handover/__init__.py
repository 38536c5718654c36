"""Restart by hand-over, with real processes, sockets and registries."""
