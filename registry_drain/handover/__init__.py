"""Restarting by hand-over: a new process takes the listening sockets and the registrations, then the old one stops.

Theory of operation. The old process starts the new one with its listening sockets (``successor``), and talks to it over
a socket pair (``channel``); ``course`` is what the old one does, ``predecessor`` what the new one does::

    old                                       new
    starts it ─────────────────────────────▶  binds nothing: the sockets are inherited; serves
              ◀──────────── listening ──────
    offers its registrations ───── offers ─▶  adopts them, registers
              ◀──────────────── ready ──────
    from here on it leaves the sockets alone
              ─────────────────────── yours ▶  they are its own
    stops: looks that its entries are the
    new one's, stops accepting, drains, exits

Both serve meanwhile, out of one backlog. Until ``yours`` everything can be taken back: a new process that ends, fails
or takes too long is ended, and the old one serves on. ``supervisor`` keeps systemd informed. Rules:

1. Until ``ready`` the old process is the owner of everything; what the new one does to a registration it undoes, or
   leaves alone and says so (``failed``), so that the old one can take back before it is gone.
2. After ``yours`` the old process is past: it stops, whatever becomes of the new one.
3. When either process vanishes, the other one learns of it by the end of the channel, and goes on alone.
"""

from registry_drain.handover.settings import Handover

__all__ = ["Handover"]
