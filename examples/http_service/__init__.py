"""An HTTP/1.1 service on the standard library, drained."""
