"""Which router gets a request: the one to which its prefix belongs, unless that has clearly more to do than others.

Every gateway comes to the same choice without a word between them: rendezvous hashing of the prompt's first tokens
over the routers' addresses. A router that comes or goes moves only the prefixes that it gets or had. The bound on the
load is that of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2018): what one router
has no room for goes to the next in the prefix's own order, so that even the overflow of a popular prefix stays
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

from cluster.router.prefixes import extend_hashes
from dflash_core.contracts import TokenIds

# Shorter prompts have nothing worth finding again, and a longer key would part the turns of a conversation.
AFFINITY_TOKENS = 64
# A router may have so many times the mean number of sequences, and so many more: a few are no load.
_MOST_OF_MEAN = 1.25
_SLACK = 4


class LoadedRouter(Protocol):
    """What the choice needs of a router."""

    address: str

    @property
    def num_active(self) -> int:
        """Sequences of this gateway that are there."""
        ...


R = TypeVar("R", bound=LoadedRouter)


def choose_router(prompt: TokenIds, routers: Sequence[R]) -> R:
    """`prompt`: [num_prompt_tokens], without tokens received since, so that a resubmission has the same order.

    The least loaded of all for a prompt shorter than `AFFINITY_TOKENS`. `routers` must not be empty.
    """
    assert routers, "there is no router to choose"
    if len(prompt) < AFFINITY_TOKENS:
        return min(routers, key=lambda router: router.num_active)
    hashes: list[int] = []
    extend_hashes(hashes, prompt[:AFFINITY_TOKENS])
    prefix = hashes[-1].to_bytes(8, "little")
    most = _MOST_OF_MEAN * (1 + sum(router.num_active for router in routers)) / len(routers) + _SLACK
    in_order = sorted(routers, key=lambda router: blake2b(prefix + router.address.encode(), digest_size=8).digest())
    return next(router for router in in_order if router.num_active <= most)
