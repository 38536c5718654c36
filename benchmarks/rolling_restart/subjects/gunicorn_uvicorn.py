"""gunicorn with uvicorn's workers."""

from __future__ import annotations

from benchmarks.rolling_restart.gunicorn_subject import serve

CLIENT = "http"
IGNORING_LIMIT = 0.0


def main() -> None:
    """Serve until SIGTERM."""
    serve("uvicorn.workers.UvicornWorker")


if __name__ == "__main__":
    main()
