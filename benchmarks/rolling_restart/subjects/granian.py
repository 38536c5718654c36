"""granian with two worker processes, by its own command line both times."""

from __future__ import annotations

from benchmarks.rolling_restart import asgi_subject, subject

CLIENT = "http"
IGNORING_LIMIT = 0.0


def main() -> None:
    """Serve until SIGTERM."""
    given = subject.options()
    where = ["--host", subject.HOST, "--port", str(given.port), "--workers", "2", "--log-level", "warning"]
    asgi_subject.become(
        ["granian", "--interface", "asgi", "--loop", "asyncio", "--factory", *where, asgi_subject.factory(given)], given
    )


if __name__ == "__main__":
    main()
