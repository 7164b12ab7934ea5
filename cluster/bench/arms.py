"""What is compared: the arms, and the cells of temperature and concurrency in which they meet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dflash_core.errors import InvalidRequest


class ArmKind(Enum):
    HUGGING_FACE = "hugging_face"  # transformers' own generate with its default cache
    PLAIN = "plain"  # our loop without drafts
    CHAIN = "chain"  # our loop, the drafter's likeliest token at each depth
    TREE = "tree"  # our loop, draft trees


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode. `tree_budget` counts nodes of a sequence and round without the root; 0 where none are."""

    kind: ArmKind
    tree_budget: int = 0
    uses_noise: bool = True  # the drafter ranks its candidates with the target's noise; nothing at temperature 0

    @property
    def name(self) -> str:
        match self.kind:
            case ArmKind.HUGGING_FACE:
                return "HF generate"
            case ArmKind.PLAIN | ArmKind.CHAIN:
                name = self.kind.value
            case ArmKind.TREE:
                name = f"tree {self.tree_budget}"
        return name if self.uses_noise else f"{name} w/o noise"


HUGGING_FACE = Arm(ArmKind.HUGGING_FACE)
PLAIN = Arm(ArmKind.PLAIN)


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition under which every arm decodes every prompt."""

    temperature: float
    concurrency: int  # requests at a time


def arms_at(temperature: float, tree_budgets: tuple[int, ...], chain_depth: int) -> tuple[Arm, ...]:
    """The arms of a temperature: `generate` where greedy, drafts without the shared noise where it matters.

    `chain_depth` is the drafter's depth: a chain can use no more nodes. Raises `InvalidRequest` for a budget below 1.
    """
    wrong = [budget for budget in tree_budgets if budget < 1]
    if wrong:
        raise InvalidRequest(f"a tree budget must be at least 1, got {wrong[0]}", param="tree_budgets")
    ours = (PLAIN, Arm(ArmKind.CHAIN, chain_depth), *(Arm(ArmKind.TREE, budget) for budget in tree_budgets))
    if temperature == 0.0:
        return (HUGGING_FACE, *ours)
    pairs = (7, 16)  # the sizes for which figures without the shared noise are published
    extra = tuple(Arm(ArmKind.TREE, budget) for budget in pairs if budget not in tree_budgets)
    return (*ours, *extra, *(Arm(ArmKind.TREE, budget, uses_noise=False) for budget in pairs))
