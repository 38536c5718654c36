"""Server adapters, each on real sockets."""
