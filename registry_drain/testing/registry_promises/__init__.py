"""The promises behind :class:`registry_drain.testing.registry_contract.RegistryContract`, one file per topic."""
