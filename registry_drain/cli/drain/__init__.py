"""``registry-drain drain`` and ``undrain``: out of rotation and back, without removing."""
