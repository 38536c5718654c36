"""The whole of it: real service processes, real registries, real clients, real signals."""
