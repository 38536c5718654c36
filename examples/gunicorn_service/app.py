"""The application: it knows nothing of registries, and may ask whether it is about to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from registry_drain.servers.current_request import time_left


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer after ``?0.5`` seconds, or as many as there are before the stop would cut the request off."""
    wanted = float(environ.get("QUERY_STRING") or 0.0)
    left = time_left()
    time.sleep(wanted if left is None else min(wanted, left))
    body = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
