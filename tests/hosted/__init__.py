"""Services that a server's own command line runs."""
