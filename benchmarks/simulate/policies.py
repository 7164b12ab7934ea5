"""Ways to decode that are compared: a router's settings each."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cluster.requests import Strategy
from cluster.router import RouterSettings

PLAIN, ADAPTIVE = "plain", "adaptive"

# Whoever fixes a tree's size does as published: drafts in turn with verifying, nodes by the drafter's own scores.
_FIXED = RouterSettings(micro_batches=1, learns_acceptance=False)

POLICIES: Final[dict[str, RouterSettings]] = {
    PLAIN: RouterSettings(strategy=Strategy.NONE, micro_batches=1),
    "chain": replace(_FIXED, strategy=Strategy.CHAIN, tree_budget=16),  # more than a draft is deep
    "tree 8": replace(_FIXED, tree_budget=8),
    "tree 16": replace(_FIXED, tree_budget=16),
    "tree 32": replace(_FIXED, tree_budget=32),
    "tree 64": replace(_FIXED, tree_budget=64),
    ADAPTIVE: RouterSettings(),  # what a router does unless told otherwise
}
