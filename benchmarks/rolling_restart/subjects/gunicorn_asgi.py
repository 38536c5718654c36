"""gunicorn with its own ASGI workers."""

from __future__ import annotations

from benchmarks.rolling_restart.gunicorn_subject import serve

CLIENT = "http"
IGNORING_LIMIT = 0.0


def main() -> None:
    """Serve until SIGTERM."""
    serve("asgi")


if __name__ == "__main__":
    main()
