"""What every backend's registration has in common, in one place each.

- ``membership``: which instance, in which registry; what its removals and its errors say
- ``write_fence``: nothing is written once the stop has begun, and nothing is under way
- ``operators_removal``: an operator has taken it out, and it stays out
"""

from registry_drain.registries.membership.membership import Membership, handed_over
from registry_drain.registries.membership.operators_removal import OperatorsRemoval
from registry_drain.registries.membership.write_fence import WriteFence

__all__ = ["Membership", "OperatorsRemoval", "WriteFence", "handed_over"]
