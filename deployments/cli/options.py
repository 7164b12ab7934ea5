"""What several commands have in common."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.requests import LatencyClass
from dflash_core.embedded import DRAFTER_NAME, TARGET_NAME
from dflash_core.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """As on the command line; the far end checks the ranges. `None` leaves a choice to the far end."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    tree_budget: int | None
    stop: tuple[str, ...] = ()
    priority: int = 0
    latency_class: LatencyClass = LatencyClass.STANDARD


@dataclass(frozen=True, slots=True)
class ModelPair:
    target: str
    drafter: str

    @classmethod
    def of(cls, target: str | None, drafter: str | None) -> ModelPair:
        """The embedded pair where nothing is named. Raises `InvalidSettings` where one of two is."""
        if (target is None) != (drafter is None):
            given, missing = ("--target", "--drafter") if drafter is None else ("--drafter", "--target")
            raise InvalidSettings(f"{given} {target or drafter} needs its {missing}: a drafter fits one target only")
        return cls(target or TARGET_NAME, drafter or DRAFTER_NAME)
