"""Removing other people's instances from Consul, one or many, as an operator does: what was shown, and proven gone.

Theory of operation. Only the agent that owns an entry can remove it for good; what is taken from the catalog alone, its
agent puts back (within about two minutes while it lives, at its next start when it is down). So the ways are, in order:

1. the agent that owns it (see :mod:`registry_drain.registries.consul.agents` for how it is found, and made sure of);
2. the catalog, by a transaction that fails if the entry has changed since (``delete-cas``). The outcome says what will
   undo it.

Everything goes in *rounds*: look at the services concerned by one consistent read each; settle what is gone, changed or
not to be touched; send the removals of the rest; look again. What a round leaves unsettled is the next one's. One
instance is a round of one. What belongs to an instance goes in its transaction, or, through an agent, before it: who is
interrupted between two requests leaves the instance itself listed, and a second run finds it and finishes.

The agent API has no compare-and-delete. Between our last look and the arrival of way 1 an owner that registers the same
*Consul* id anew would be removed, too. Registrations of this package never use an id twice.

- ``course``: the rounds; ``case``: one entry on its way out, and what it comes to
- ``companions``: what goes with an instance
- ``ways``: sending, through agents and through the catalog; ``transaction``: many removals in few requests
"""

from registry_drain.registries.consul.removal.course import ConsulRemovals

__all__ = ["ConsulRemovals"]
