"""Proofs that the harness does what the other tests trust it to do."""
