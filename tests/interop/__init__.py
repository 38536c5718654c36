"""The proof with software that is not ours: it sees what we register and what we remove, and we see and remove its."""
