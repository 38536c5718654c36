"""The command line: one file per command. Backends are imported only when a URL names them."""
