"""One's own instance in ZooKeeper: a thread that keeps its node, the fence, and the proven removal.

Theory of operation. All registering is done by one thread, the worker, which ``register`` starts and asks, and which
kazoo's listeners and watches wake: they set an event and do nothing else. Rules:

1. *The fence* is a cancellation, which the worker reads before each step and which ends its waits, and a join. If the
   worker was inside a write then, it ends that session at once: the goodbye stands behind the write in the same queue.
2. *Removal is the end of our sessions*, known from the server, and then a consistent read over another session.
3. Whoever finds the node taken over by a newer instance stops keeping it, says so once, and never tries again.
4. A result that leaves the node in doubt is not kept: a further ``on_shutdown`` tries again.
5. What an operator removed stays out (rule 5 of the node): the worker rests, and keeps its session for the end.
6. A hand-over is a take-over that is expected: the next process replaces the node in one transaction, which no reader
   can look into, and this one's worker rests meanwhile. Taking back is taking over the other way round.

- ``registration``: what callers see, and the hand-over
- ``worker``: the thread that registers, and keeps registered
- ``node``: what it does about the node: on which session it is written; ``take_over``: who may hold the path
- ``leaving_rotation``: listed, and called no more; ``removing``: the end of the sessions, and the proof
"""

from registry_drain.registries.zookeeper.registration.registration import ZooKeeperRegistration

__all__ = ["ZooKeeperRegistration"]
