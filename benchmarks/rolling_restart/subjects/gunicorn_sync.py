"""gunicorn with sync workers: one request at a time each, and a connection for each request."""

from __future__ import annotations

from benchmarks.rolling_restart.gunicorn_subject import serve

CLIENT = "http"
KEEPS_CONNECTIONS = False
IGNORING_LIMIT = 0.0


def main() -> None:
    """Serve until SIGTERM."""
    serve("sync", workers=4)


if __name__ == "__main__":
    main()
