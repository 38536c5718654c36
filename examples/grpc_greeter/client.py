"""A client that follows the registry: it calls the listed instances in turn, over channels that it keeps.

    python -m examples.grpc_greeter.client --registry local:///tmp/cluster --seconds 30

Restart the servers meanwhile; at the end it says how many calls it made and how many failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from typing import Any

import grpc

from registry_drain import Deadline, ServiceInstance, open_registry
from registry_drain.registries.base import Watch

CALL_TIMEOUT = 10.0
"""Seconds that one call may take."""


def call_for(watch: Watch, seconds: float) -> tuple[int, list[str]]:
    """Call whatever is listed at the moment, for ``seconds``; return how many calls were made, and what went wrong."""
    channels: dict[ServiceInstance, Any] = {}
    calls, failures = 0, []
    ends_at = time.monotonic() + seconds
    for turn in itertools.count():
        listed = watch.instances
        for gone in [instance for instance in channels if instance not in listed]:
            channels.pop(gone).close()
        if time.monotonic() >= ends_at:
            break
        if not listed:
            time.sleep(0.01)
            continue
        instance = listed[turn % len(listed)]
        if instance not in channels:
            channels[instance] = grpc.insecure_channel(f"{instance.address}:{instance.port}")
        calls += 1
        try:
            greet = channels[instance].unary_unary("/greeter.Greeter/Greet")
            if greet(b"world", timeout=CALL_TIMEOUT) != b"Hello, world":
                failures.append(f"{instance}: a wrong answer")
        except grpc.RpcError as error:
            failures.append(f"{instance}: {error.code().name}: {error.details()}")
    for channel in channels.values():
        channel.close()
    return calls, failures


def main() -> int:
    """Call for a while; status 1 if any call failed or none was made."""
    parser = argparse.ArgumentParser(description="A client of the greeter service.")
    parser.add_argument("--registry", required=True, help="for instance local:///tmp/cluster, consul://127.0.0.1:8500")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with (
        contextlib.closing(open_registry(options.registry)) as registry,
        contextlib.closing(registry.watch("greeter", Deadline.after(10.0))) as watch,
    ):
        calls, failures = call_for(watch, options.seconds)
    print(f"{calls} calls, {len(failures)} failed")
    for failure in failures[:10]:
        print(f"  {failure}")
    return 1 if failures or not calls else 0


if __name__ == "__main__":
    sys.exit(main())
