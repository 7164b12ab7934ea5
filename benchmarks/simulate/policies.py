"""Ways to decode that are compared: a router's settings each."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cluster.requests import Strategy
from cluster.router import RouterSettings

DEFAULT = "default"
PLAIN = "plain"
_SETTINGS = RouterSettings()

POLICIES: Final[dict[str, RouterSettings]] = {
    PLAIN: replace(_SETTINGS, strategy=Strategy.NONE),
    "chain": replace(_SETTINGS, strategy=Strategy.CHAIN),  # of as many nodes as a draft is deep
    "tree 8": replace(_SETTINGS, tree_budget=8),
    "tree 16": replace(_SETTINGS, tree_budget=16),
    "tree 32": replace(_SETTINGS, tree_budget=32),
    "tree 64": replace(_SETTINGS, tree_budget=64),
    DEFAULT: _SETTINGS,  # what a router does unless told otherwise
}
