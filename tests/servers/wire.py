"""A TCP client made of packets, in a network namespace of its own: what the kernel answers to each, and to no other.

``python -m tests.servers.wire METHOD FAMILY [cookies]`` (as root) begins a handshake, lets a listener hold new
connections off, begins another, and only then ends the first. It prints what came of each, as JSON. No clock is
involved: the kernel answers packets in the order in which they came.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from registry_drain.servers.listener import hold_off, hold_off_by_backlog, hold_off_by_decoy, hold_off_by_filter

METHODS = {"filter": hold_off_by_filter, "decoy": hold_off_by_decoy, "backlog": hold_off_by_backlog}
FAMILIES = {
    # our address, the client's, where the listener binds
    "IPv4": ("10.9.0.1", "10.9.0.2", "10.9.0.1"),
    "IPv4 everywhere": ("10.9.0.1", "10.9.0.2", "0.0.0.0"),
    "IPv6": ("fd00:9::1", "fd00:9::2", "fd00:9::1"),
    "IPv6 everywhere": ("fd00:9::1", "fd00:9::2", "::"),
    "dual stack, by IPv4": ("10.9.0.1", "10.9.0.2", "::"),
}
NOBODY = 65534
PORT = 7000
TIMEOUT_MS = 10_000

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001  # IFF_TUN | IFF_NO_PI


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


@dataclass
class Segment:
    """What matters of a TCP segment."""

    source: int
    destination: int
    sequence: int
    acknowledged: int
    flags: int


class Wire:
    """A network device whose other end this program is."""

    def __init__(self, ours: str, theirs: str) -> None:
        """Leave the machine's network, and make one of the device and the loopback."""
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "unshare")
        self._device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._device, _TUNSETIFF, struct.pack("16sH22x", b"wire", _TUN_WITHOUT_HEADER))
        self._returned: list[Segment] = []
        self._is_ipv6 = ":" in ours
        family = socket.AF_INET6 if self._is_ipv6 else socket.AF_INET
        self._source, self._target = socket.inet_pton(family, theirs), socket.inet_pton(family, ours)
        address = [f"{ours}/64", "nodad"] if self._is_ipv6 else [f"{ours}/24"]
        subprocess.run(["ip", "address", "add", *address, "dev", "wire"], check=True)
        subprocess.run(["ip", "link", "set", "wire", "up"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        # The kernel takes an IPv6 address into use a little later, in a thread of its own.
        ends_at = time.monotonic() + TIMEOUT_MS / 1000
        while self._is_ipv6 and not self._is_in_use():
            if time.monotonic() > ends_at:
                raise TimeoutError(f"{ours} is not in use")
            time.sleep(0.001)

    def _is_in_use(self) -> bool:
        """Whether the kernel has a route to our IPv6 address: it then answers for it."""
        routes = Path("/proc/thread-self/net/ipv6_route").read_text().splitlines()
        return any(route.startswith(f"{self._target.hex()} 80 ") for route in routes)

    def send(self, segment: Segment, payload: bytes = b"") -> None:
        """Send a segment to the kernel."""
        fields = (segment.source, segment.destination, segment.sequence, segment.acknowledged, 5 << 4, segment.flags)
        header = struct.pack("!HHIIBBHHH", *fields, 65535, 0, 0)
        tcp = header + payload
        pseudo = self._source + self._target + struct.pack("!II", len(tcp), socket.IPPROTO_TCP)
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
        if self._is_ipv6:
            packet = struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64) + self._source + self._target + tcp
        else:
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0)
            head += self._source + self._target
            packet = head[:10] + struct.pack("!H", checksum(head)) + head[12:] + tcp
        os.write(self._device, packet)

    def receive(self) -> Segment:
        """Return the kernel's next TCP segment; one that it repeats, since we were slow to answer, is passed over."""
        poller = select.poll()
        poller.register(self._device, select.POLLIN)
        while poller.poll(TIMEOUT_MS):
            packet = os.read(self._device, 65536)
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                tcp = packet[(packet[0] & 15) * 4 :]
            elif packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_TCP:
                tcp = packet[40:]
            else:
                continue  # IPv6 looks for its neighbours.
            segment = Segment(*struct.unpack("!HHIIxB", tcp[:14]))
            if segment not in self._returned:
                self._returned.append(segment)
                return segment
        raise TimeoutError("the kernel sent nothing")


def main(method: str, family: str, cookies: str = "") -> None:
    """Print what the kernel answered."""
    ours, theirs, bound = FAMILIES[family]
    wire = Wire(ours, theirs)
    if cookies:
        # Always: no handshake is remembered, and the last segment of each has to find the listener (ip-sysctl.rst).
        Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("2")
    if method != "filter":
        os.setresuid(NOBODY, NOBODY, NOBODY)
    kind = socket.AF_INET6 if ":" in bound else socket.AF_INET
    # Where cookies were sent is remembered per group if there is one: the decoy must not be what makes it one.
    listener = socket.create_server(
        (bound, PORT), family=kind, dualstack_ipv6=bound == "::", backlog=16, reuse_port=bool(cookies)
    )
    wire.send(Segment(1001, PORT, 100, 0, SYN))
    reply = wire.receive()
    seen: dict[str, object] = {"a SYN before": (reply.destination, reply.flags)}

    held = hold_off(listener, [METHODS[method]])
    wire.send(Segment(1002, PORT, 200, 0, SYN))
    wire.send(Segment(1001, PORT, 101, reply.sequence + 1, ACK), b"request")
    reply = wire.receive()
    seen["the first after holding off"] = (reply.destination, reply.flags)
    listener.settimeout(TIMEOUT_MS / 1000)
    connection, _ = listener.accept()
    seen["request"] = connection.recv(16).decode()
    listener.setblocking(False)
    try:
        listener.accept()
        seen["accepted besides"] = True
    except BlockingIOError:
        seen["accepted besides"] = False

    listener.close()
    held.close()
    wire.send(Segment(1003, PORT, 300, 0, SYN))
    reply = wire.receive()
    seen["a SYN after"] = (reply.destination, reply.flags)
    connection.close()
    sys.stdout.write(json.dumps({"method": held.method, **seen}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
