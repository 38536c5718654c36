"""The WSGI middleware by itself: what it counts, what it says, and what it leaves alone."""

from __future__ import annotations

import contextlib
import gc
import io
import threading
import wsgiref.util
import wsgiref.validate
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from registry_drain.clock import Deadline
from registry_drain.phases import Phase
from registry_drain.servers.current_request import is_draining, name_request, time_left
from registry_drain.servers.http import WSGIMiddleware
from registry_drain.servers.in_flight import InFlight

PATIENCE = 20.0


def environ(path: str = "/", others: Any = (), **more: Any) -> dict[str, Any]:
    """Return what a server would give."""
    given: dict[str, Any] = {
        "PATH_INFO": path,
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "secret=1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "10.0.0.9",
        "REMOTE_PORT": "5000",
        "wsgi.input": io.BytesIO(),
        **more,
        **dict(others),
    }
    wsgiref.util.setup_testing_defaults(given)
    return given


class Answer:
    """One answer, read to its end."""

    def __init__(self, app: Any, given: dict[str, Any]) -> None:
        """Call the application."""
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.parts = app(given, self.start_response)

    def start_response(self, status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
        """Note the head."""
        self.status, self.headers = status, headers
        self.exc_info = rest
        return lambda _: None

    def read(self) -> bytes:
        """Read the body, and close it, as servers do."""
        body = b"".join(self.parts)
        if hasattr(self.parts, "close"):
            self.parts.close()
        return body

    def connection(self) -> list[str]:
        """Return the ``Connection`` headers."""
        return [value for name, value in self.headers if name.lower() == "connection"]


class _Reading:
    """Reads one answer; closes it whatever happens, as servers do."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.answer: Answer | None = None

    def read(self) -> None:
        self.answer = Answer(self.app, environ())
        self.answer.read()

    def close(self) -> None:
        if self.answer is not None:
            self.answer.parts.close()


def hello(_: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer at once."""
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def stop(in_flight: InFlight, phase: Phase, seconds: float = PATIENCE) -> None:
    """Do what the stop routine does."""
    in_flight.stop_state.enter(phase, Deadline.after(seconds).at)


def test_a_request_is_in_flight_until_its_body_is_closed() -> None:
    """From the call on, streaming included; named without its query, which may hold a secret."""
    closed: list[bool] = []

    def stream(_: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"one"
            yield b"two"
        finally:
            closed.append(True)

    middleware = WSGIMiddleware(stream)
    in_flight = middleware.in_flight
    answer = Answer(middleware, environ("/stream", SCRIPT_NAME="/mounted"))
    (request,) = in_flight.snapshot()
    assert (request.name, request.peer) == ("GET /mounted/stream", "10.0.0.9:5000")
    assert list(answer.parts) == [b"one", b"two"]
    assert in_flight.count == 1
    answer.parts.close()
    assert (in_flight.count, in_flight.total, closed) == (0, 1, [True])


def test_an_application_that_fails_is_not_in_flight() -> None:
    """Whether it raises when it is called, between two pieces, or when it is closed."""

    def raising(_: dict[str, Any], __: Any) -> list[bytes]:
        raise RuntimeError("no good")

    def raising_later(_: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        raise RuntimeError("no good")

    class Closing:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"one"])

        def close(self) -> None:
            raise RuntimeError("no good")

    apps: list[Any] = [raising, raising_later, lambda _, __: Closing()]
    for app in apps:
        middleware = WSGIMiddleware(app)
        with pytest.raises(RuntimeError, match="no good"), contextlib.closing(_Reading(middleware)) as reading:
            reading.read()
        assert middleware.in_flight.count == 0


def test_a_server_that_never_closes_keeps_no_drain() -> None:
    """The request ends when its body is collected."""
    middleware = WSGIMiddleware(hello)
    Answer(middleware, environ())
    gc.collect()
    assert middleware.in_flight.count == 0


def test_everything_of_the_application_knows_its_request() -> None:
    """Its call, its pieces and its close, even if another thread takes them; and nothing is left behind."""
    seen: list[object] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            seen.append(is_draining())
            yield b"x"
            name_request("named late")
            seen.append([request.name for request in middleware.in_flight.snapshot()])

        def close(self) -> None:
            seen.append(time_left() is not None)

    def app(_: dict[str, Any], start_response: Any) -> Body:
        seen.append(is_draining())
        start_response("200 OK", [])
        return Body()

    middleware = WSGIMiddleware(app)
    stop(middleware.in_flight, Phase.DRAINING)
    answer = Answer(middleware, environ())
    reader = threading.Thread(target=answer.read)
    reader.start()
    reader.join()
    assert seen == [True, True, ["named late"], True]
    assert not is_draining()


def test_a_body_keeps_its_length() -> None:
    """Servers look at it to find out how long the answer is; a generator has none."""
    assert len(Answer(WSGIMiddleware(hello), environ()).parts) == 1
    assert not hasattr(Answer(WSGIMiddleware(lambda _, __: iter([b"x"])), environ()).parts, "__len__")


def test_a_file_stays_the_servers_own() -> None:
    """So that it can be sent by ``sendfile``; its close ends the request all the same, and closes the file."""
    file = io.BytesIO(b"contents")
    wrapper = wsgiref.util.FileWrapper

    def app(given: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        wrapped: Iterable[bytes] = given["wsgi.file_wrapper"](file)
        return wrapped

    middleware = WSGIMiddleware(app)
    answer = Answer(middleware, environ(others={"wsgi.file_wrapper": wrapper}))
    assert type(answer.parts) is wrapper
    assert middleware.in_flight.count == 1
    assert answer.read() == b"contents"
    assert middleware.in_flight.count == 0
    assert file.closed


def test_connection_close_is_said_once_delisted() -> None:
    """To HTTP/1 clients, in place of what the application says, but not an upgrade; as late as can be."""

    def app(given: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        header = {"/keep": "keep-alive", "/upgrade": "Upgrade"}.get(given["PATH_INFO"])
        start_response("200 OK", [("connection", header)] if header else [])
        yield b""

    middleware = WSGIMiddleware(app)
    under_way = Answer(middleware, environ())  # a generator: its answer has not begun

    def asked(path: str, **more: Any) -> list[str]:
        answer = Answer(middleware, environ(path, **more))
        answer.read()
        return answer.connection()

    assert asked("/") == []
    stop(middleware.in_flight, Phase.DEREGISTERING)
    assert asked("/") == []
    stop(middleware.in_flight, Phase.PROPAGATING)
    assert asked("/") == ["close"]
    assert asked("/keep") == ["close"]
    assert asked("/upgrade") == ["Upgrade"]
    assert asked("/", SERVER_PROTOCOL="HTTP/1.0") == ["close"]
    assert asked("/", SERVER_PROTOCOL="HTTP/2") == []
    under_way.read()
    assert under_way.connection() == ["close"]


@pytest.mark.parametrize(
    ("software", "setting", "is_said"),
    [
        ("cheroot/10", None, True),
        ("WSGIServer/0.2 CPython/3.13", None, False),
        ("waitress", None, False),
        ("cheroot/10", False, False),
        ("renamed waitress", False, False),
        ("waitress", True, True),
    ],
)
def test_servers_that_refuse_the_header_are_not_given_it(software: str, setting: bool | None, is_said: bool) -> None:
    """They raise an AssertionError for hop-by-hop headers; whoever knows better says so."""
    middleware = WSGIMiddleware(hello, sends_connection_close=setting)
    stop(middleware.in_flight, Phase.PROPAGATING)
    answer = Answer(middleware, environ(SERVER_SOFTWARE=software))
    assert answer.connection() == (["close"] if is_said else [])


def test_late_requests_are_served_while_there_is_time() -> None:
    """Then 503 with Retry-After, without asking the application; the body is read, so that nothing is reset."""
    middleware = WSGIMiddleware(hello, retry_after=7)
    stop(middleware.in_flight, Phase.DRAINING)
    assert Answer(middleware, environ()).read() == b"hello"
    middleware.in_flight.stop_state.hurry(Deadline.after(0).at)
    body = io.BytesIO(b"x" * 10)
    answer = Answer(middleware, environ(CONTENT_LENGTH="10", others={"wsgi.input": body}))
    assert answer.status == "503 Service Unavailable"
    assert dict(answer.headers)["Retry-After"] == "7"
    assert answer.connection() == ["close"]
    assert b"stopping" in answer.read()
    assert body.read() == b""
    assert middleware.in_flight.total == 1


def test_refusing_as_soon_as_the_listener_is_sealed() -> None:
    """As a filter in front does it; health checks pass, until the drain has ended."""
    middleware = WSGIMiddleware(hello, health_check_paths=["/health"], refuses_when_sealed=True)
    stop(middleware.in_flight, Phase.CLOSING)
    assert Answer(middleware, environ()).status == "200 OK"
    stop(middleware.in_flight, Phase.DRAINING)
    assert Answer(middleware, environ()).status == "503 Service Unavailable"
    assert Answer(middleware, environ("/health")).status == "200 OK"
    stop(middleware.in_flight, Phase.NOTIFYING)
    assert Answer(middleware, environ("/health")).status == "503 Service Unavailable"


def test_readiness() -> None:
    """200 while serving, 503 from the first moment of the stop, and no request."""
    middleware = WSGIMiddleware(hello, readiness_path="/ready")
    assert Answer(middleware, environ("/ready")).read() == b"ready\n"
    assert Answer(middleware, environ("/ready", REQUEST_METHOD="HEAD")).read() == b""
    stop(middleware.in_flight, Phase.DEREGISTERING)
    answer = Answer(middleware, environ("/ready"))
    assert (answer.status, answer.read()) == ("503 Service Unavailable", b"stopping\n")
    assert Answer(middleware, environ("/")).status == "200 OK"
    assert middleware.in_flight.total == 1


def test_it_keeps_the_protocol() -> None:
    """The standard library's validator between server and middleware, and between middleware and application."""

    def app(_: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"hello"]

    middleware = WSGIMiddleware(wsgiref.validate.validator(app))
    given = environ()
    given["wsgi.input"] = io.BytesIO()
    answer = Answer(wsgiref.validate.validator(middleware), given)
    assert answer.read() == b"hello"
    assert middleware.in_flight.count == 0


def test_exc_info_is_passed_on() -> None:
    """An application may replace an answer that has not been sent yet."""

    def app(_: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        error = ValueError("no good")
        start_response("500 Oops", [], (type(error), error, error.__traceback__))
        return [b""]

    answer = Answer(WSGIMiddleware(app), environ())
    assert answer.status == "500 Oops"
    assert answer.exc_info[0][0] is ValueError
