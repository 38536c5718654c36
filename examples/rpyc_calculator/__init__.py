"""An RPyC service that loses no call when it is restarted, and a client that follows the registry."""
