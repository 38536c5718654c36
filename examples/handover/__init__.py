"""A service with two ports that restarts without refusing a connection: SIGHUP, or a pair of systemd units."""
