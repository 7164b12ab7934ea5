"""What is compared: the arms, and the cells of temperature and concurrency in which they meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from cluster.requests import Strategy
from cluster.router import RouterSettings
from dflash_core.errors import InvalidRequest

_COMPARED_BUDGETS = (8, 16)  # of trees without what this project adds


class References(Enum):
    """What an arm of ours is compared with besides our own."""

    ALL = "all"  # generate of transformers where greedy, trees of raw scores, and the published method
    PUBLISHED = "published"  # chains and trees as published: scores of the drafter alone, ranked without noise
    NONE = "none"


class ArmKind(Enum):
    HUGGING_FACE = "hugging_face"  # transformers' own generate with its default cache
    PLAIN = "plain"  # our loop without drafts
    CHAIN = "chain"  # our loop, the drafter's likeliest token at each depth
    TREE = "tree"  # our loop, draft trees of a fixed size
    ADAPTIVE = "adaptive"  # our loop, as many nodes as pay: the router's default


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode. `tree_budget` counts nodes of a sequence and round without the root; 0 where none is fixed."""

    kind: ArmKind
    tree_budget: int = 0
    # The drafter ranks its candidates with the target's noise; nothing at temperature 0. Without, nothing is learned.
    uses_noise: bool = True
    learns_acceptance: bool = True  # nodes are scored by how often such nodes were accepted; else by the drafter alone

    def __post_init__(self) -> None:
        assert self.uses_noise or not self.learns_acceptance, self

    @property
    def name(self) -> str:
        match self.kind:
            case ArmKind.HUGGING_FACE:
                return "HF generate"
            case ArmKind.PLAIN | ArmKind.CHAIN | ArmKind.ADAPTIVE:
                name: str = self.kind.value
            case ArmKind.TREE:
                name = f"tree {self.tree_budget}"
        if self.learns_acceptance:
            return name
        return f"{name} raw" if self.uses_noise else f"published {name}"

    @property
    def is_fixed(self) -> bool:
        """Among what a user could have set instead of letting the router choose."""
        return self.kind in (ArmKind.PLAIN, ArmKind.CHAIN, ArmKind.TREE) and self.learns_acceptance

    @property
    def is_published(self) -> bool:
        """Among what a user could set elsewhere: plain decoding, chains (DFlash) and trees (DDTree) as published."""
        return self == PLAIN or not self.uses_noise

    @property
    def router_settings(self) -> RouterSettings:
        """Raises ValueError for the arm that has no router."""
        match self.kind:
            case ArmKind.ADAPTIVE:
                return RouterSettings()
            case ArmKind.PLAIN:
                return RouterSettings(strategy=Strategy.NONE)
            case ArmKind.CHAIN | ArmKind.TREE:
                strategy = Strategy.CHAIN if self.kind is ArmKind.CHAIN else Strategy.DRAFT_TREES
                return RouterSettings(
                    strategy=strategy, tree_budget=self.tree_budget, learns_acceptance=self.learns_acceptance
                )
            case ArmKind.HUGGING_FACE:
                raise ValueError(f"{self.name} has no router")


HUGGING_FACE = Arm(ArmKind.HUGGING_FACE)
PLAIN = Arm(ArmKind.PLAIN)
ADAPTIVE = Arm(ArmKind.ADAPTIVE)


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition under which every arm decodes every prompt."""

    temperature: float
    concurrency: int  # requests at a time


def arms_at(
    temperature: float, tree_budgets: tuple[int, ...], chain_depth: int, references: References
) -> tuple[Arm, ...]:
    """The arms of a temperature: every fixed setting, the adaptive one, and what they are compared with.

    `chain_depth` is the drafter's depth: a chain can use no more nodes. Raises `InvalidRequest` for a budget below 1.
    """
    wrong = [budget for budget in tree_budgets if budget < 1]
    if wrong:
        raise InvalidRequest(f"a tree budget must be at least 1, got {wrong[0]}", param="tree_budgets")
    trees = tuple(Arm(ArmKind.TREE, budget) for budget in tree_budgets)
    ours = (PLAIN, Arm(ArmKind.CHAIN, chain_depth), *trees, ADAPTIVE)
    if references is References.NONE:
        return ours
    raw = tuple(Arm(ArmKind.TREE, budget, learns_acceptance=False) for budget in _COMPARED_BUDGETS)
    chain = Arm(ArmKind.CHAIN, chain_depth, uses_noise=False, learns_acceptance=False)
    published = (chain, *(replace(arm, uses_noise=False) for arm in raw))
    if references is References.PUBLISHED:
        return (*ours, *published)
    return (*((HUGGING_FACE,) if temperature == 0.0 else ()), *ours, *raw, *published)
