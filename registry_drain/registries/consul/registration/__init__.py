"""One's own instance in Consul: registered, kept alive, and removed with proof.

Theory of operation
-------------------
**An id of its own.** The id of the Consul service is the instance id, ``~`` and this registration's *incarnation*.
Consul's agent API has no compare-and-delete: whoever deregisters an id removes whatever stands there when the request
*arrives*, be it a successor that registered a millisecond ago. With an id that nobody else will ever use, a removal
that comes late, twice, or after a restart hits only what it was meant for. The rejected alternative, the bare instance
id with a look before each removal, leaves a window as long as an agent can be frozen. The instance id itself stands in
Meta, and everything in this package shows that one.

**Taking over.** A new incarnation therefore removes its predecessors on the same agent by itself, right after it is
listed: those with its instance id and another incarnation, dead or alive; but none that lives and was registered after
it, before it could look. A predecessor that still lives notices with its next heartbeat, and gives way. If an agent has
lost both, each registers again, and the younger removes the elder.

**Heartbeats.** A daemon thread passes the TTL check. When the agent does not know the check any more, and no successor
stands there, it either lost us, and the thread registers again, or an operator removed us, and we stay out until we are
told to rejoin. When the token was rotated the thread registers again with the new one: the agent keeps the token of a
registration, and needs a valid one to remove it.

**The fence.** Every write of a registration or a heartbeat passes the write fence. All these writes use a client of
their own, which ``fence`` closes for good when they do not end in time: behind it no byte of them can leave.

**Handing over.** The process that replaces this one, and shares its listening socket, registers under the *same* Consul
id and check id, with an incarnation of its own: one PUT replaces the entry, so that callers see it at every moment and
once. Both may pass the check. From the offer on the old one registers no more (a late PUT would overwrite), until it
takes the entry back; the new one does not remove it before the old one's word. Whose it is, the incarnation tells.

**Proof.** Removed means that a consistent read does not list the incarnation, asked with a token that has seen it (or
whose sight was tested). The agent's own 200 proves nothing.

- ``registration``: what callers see; ``standing``: what its threads share, and whose entry it is
- ``registering``: into the agent, over its predecessors; ``own``: names, payload, and how it and its rivals are found
- ``renewing``: one beat, and what follows when the agent does not know it; ``heartbeat``: the thread that beats
- ``last_taken``, ``disappearance``, ``agent_identity``: lost, or removed by an operator?
- ``removing``: out of agent and catalog, with proof; ``sight``: reading ourselves, and what an absence proves
- ``handing_over``: to the process that replaces this one, and from the one that it replaces
"""

from registry_drain.registries.consul.registration.registration import ConsulRegistration

__all__ = ["ConsulRegistration"]
