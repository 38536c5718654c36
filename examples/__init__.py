"""Services that embed registry_drain, and clients that follow the registry. Run from the repository's root."""
