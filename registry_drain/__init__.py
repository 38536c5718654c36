"""Stop a server so that no request fails: leave the registry first, drain, then tell everybody else."""
