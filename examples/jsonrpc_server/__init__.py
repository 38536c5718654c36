"""A JSON-RPC 2.0 service on the standard library, drained."""
