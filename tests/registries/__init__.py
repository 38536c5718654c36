"""Registries: the contract suite on each of them, and what is particular to each."""
