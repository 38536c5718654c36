"""``uvicorn --workers 3``: one instance of several processes, by uvicorn's own command line both times."""

from __future__ import annotations

from benchmarks.rolling_restart import asgi_subject, subject

CLIENT = "http"
IGNORING_LIMIT = 0.0


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    where = ["--host", subject.HOST, "--port", str(given.port), "--workers", "3", "--log-level", "warning"]
    asgi_subject.become(["uvicorn", "--factory", asgi_subject.factory(given), *where], given)


if __name__ == "__main__":
    main()
