"""One ZooKeeper session, with every wait bounded, and ended for certain.

Theory of operation. kazoo gives a client that reconnects by itself and, when its session has expired, goes on under a
*new* session without being asked. Both are wrong here: what is queued must not run later, and an ephemeral node belongs
to exactly one session. So a :class:`ZooKeeperSession` wraps one KazooClient for the life of one session. Once that
session is over the object is never used again; whoever needs a session makes another. Rules:

1. Only asynchronous calls, each ``get`` with a time limit. kazoo's synchronous calls wait without limit while the
   connection is down, and so does its retry helper, whatever its deadline.
2. Nothing is handed to kazoo unless the session is connected, and never more than ``MOST_OUTSTANDING`` requests at
   once. kazoo wakes its connection thread with one byte per request through a socket pair; while the connection is down
   nobody reads those bytes, they outlive the requests, and after 278 of them (on Linux) the *next caller hangs*.
3. A write that was not answered may still be in kazoo's queue and run after a reconnect. Its caller must ``begin_end``
   the session, which drops the queue, or lets the server undo what it has done.
4. Our listener runs in kazoo's threads: it takes notes and sets events. All work is done in the callers' threads.
5. *Dead* means that the server said so: it answered our goodbye, or told us that the session has expired. kazoo's
   ``stop()`` looks the same whether the goodbye arrived or the connection broke; the listener tells the two apart by
   the state that preceded it. If the goodbye was lost, ``end`` resumes the session by its id and password on a new
   connection and says it again. Only after that is an absent node proof that it stays absent: requests of a broken
   connection may still lie unread in the server's socket.
6. A server may hang, and kazoo takes two thirds of the session's time-out to notice, or all of it while it connects. So
   a goodbye that is not answered soon is said again in the same way, to another server where there is one. And one that
   cannot be said, for want of a connection, is said that way at once: it may be kazoo's own attempt that hangs.

kazoo's ``stop()`` can block (a black hole, a resolver), so it runs in a thread of its own which nobody waits for
without a limit. Locks guard the fields only.

- ``session``: what callers see; ``state``: what kazoo's threads tell it, and who waits for that
- ``calls``: requests and their answers; ``ending``: the goodbye, and making sure of it
"""

from registry_drain.registries.zookeeper.session.calls import Request
from registry_drain.registries.zookeeper.session.session import ZooKeeperSession, read_stat
from registry_drain.registries.zookeeper.session.state import SessionPhase, session_text
from registry_drain.registries.zookeeper.session_errors import ANSWERS, RefusedRequestError

__all__ = ["ANSWERS", "RefusedRequestError", "Request", "SessionPhase", "ZooKeeperSession", "read_stat", "session_text"]
