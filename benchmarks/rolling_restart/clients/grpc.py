"""gRPC's own client, one channel with a connection of its own, and without a retry policy, which would hide losses.

What a GOAWAY says that the server has never seen, the client sends again by itself, as every gRPC client does.
"""

from __future__ import annotations

import time
from typing import Any

import grpc

TIMEOUT_S = 10.0
METHOD = "/echo.Echo/Call"

_READY, _FAILED = grpc.ChannelConnectivity.READY.value[0], grpc.ChannelConnectivity.TRANSIENT_FAILURE.value[0]
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


class Client:
    """One channel to a server with the method :data:`METHOD`. For one thread."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect.

        Raises:
            ConnectionRefusedError: nobody listens.
            TimeoutError: not in time.
        """
        self._channel = grpc.insecure_channel(f"{address[0]}:{address[1]}", options=_OPTIONS)
        self._call = self._channel.unary_unary(METHOD)
        # The channel inside: its public face tells its state by a thread for each channel.
        self._core: Any = self._channel._channel  # noqa: SLF001
        try:
            self._await_connection()
        except BaseException:
            self._channel.close()
            raise

    def _await_connection(self) -> None:
        ends_at = time.time() + TIMEOUT_S
        while (state := self._core.check_connectivity_state(True)) != _READY:  # noqa: FBT003 - connect
            if state == _FAILED:
                raise ConnectionRefusedError("nobody listens")
            if time.time() >= ends_at:
                raise TimeoutError("not connected in time")
            self._core.watch_connectivity_state(state, ends_at)

    def call(self, payload: bytes) -> bytes:
        """Make one call.

        Raises:
            ConnectionRefusedError: the server had said goodbye before, and nobody listens there any more.
            TimeoutError: no answer in time.
            OSError: any other status.
        """
        try:
            answer: bytes = self._call(payload, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError("no answer in time") from error
            if error.code() is grpc.StatusCode.UNAVAILABLE and "refused" in error.details():
                raise ConnectionRefusedError(error.details()) from error
            raise OSError(f"{error.code().name}: {error.details()}") from error
        return answer

    def is_closed(self) -> bool:
        """Whether the server has said goodbye: a GOAWAY makes the channel idle."""
        return bool(self._core.check_connectivity_state(False) != _READY)  # noqa: FBT003 - only look

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
