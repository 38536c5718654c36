"""``registry-drain list``: once, or live."""
