"""How often a node is accepted given its path, learned online from what targets accepted.

DDTree (arXiv 2604.12989) scores a path by the product of the drafter's per-depth probabilities. These are marginals:
they know nothing of the path, and their scale is not that of acceptance. Here each depth is a multinomial regression:
which of the candidates is right, or none of them, by the drafter's log-probabilities, depth, rank, whether the path has
left the spine, the context (temperature, truncation, noise), and one thing that the drafter cannot know of a path: how
the sequence went on where it had the path's last tokens before. Candidates share what there is: where the drafter is
unsure of a depth all of them are unlikely to it, and yet one of them is right nearly as often as elsewhere. A context
starts neutral (the probability is the drafter's own) and stays there where nothing is to be gained.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from dflash_core.contracts import DraftRanking, SamplingParams
from dflash_core.errors import InvalidSettings
from dflash_core.trees.scoring import NONE_SLOPE, NUM_BUCKETS, NUM_KINDS, SLOPE, Doubles

# Temperatures of the classes after the greedy one: up to these, and above.
_TEMPERATURES = (0.5, 0.9)
GREEDY_CLASS = 0
NUM_CLASSES = 1 + 4 * (len(_TEMPERATURES) + 1)


def context_class(sampling: SamplingParams, ranking: DraftRanking) -> int:
    """Contexts that share their parameters: greedy, or a range of temperature × truncated × ranked with the noise."""
    if sampling.is_greedy:
        return GREEDY_CLASS
    temperature = sum(sampling.temperature > limit for limit in _TEMPERATURES)
    is_truncated = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    return 1 + 4 * temperature + 2 * is_truncated + ranking.uses_noise


class _Saved(BaseModel):
    """The file's form. Nested lists as `AcceptanceModel`'s arrays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    form: Literal[2]
    parameters: list[list[list[list[FiniteFloat]]]]
    squares: list[list[list[list[Annotated[FiniteFloat, Field(ge=0.0)]]]]]


class AcceptanceModel:
    """The parameters of every context class, and the running sums of squared gradients that set their steps."""

    def __init__(self) -> None:
        self.parameters: Doubles = np.zeros((NUM_CLASSES, 2, NUM_KINDS, NUM_BUCKETS))
        self.parameters[:, :, [SLOPE, NONE_SLOPE]] = 1.0
        self.squares: Doubles = np.zeros_like(self.parameters)

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` takes: for keeping what was learned of a pair."""
        saved = _Saved(
            form=2, parameters=np.round(self.parameters, 5).tolist(), squares=np.round(self.squares, 3).tolist()
        )
        return saved.model_dump()

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> AcceptanceModel:
        """Raises `InvalidSettings` for anything that `as_dict` did not make."""
        try:
            read = _Saved.model_validate(saved)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InvalidSettings(f"learned acceptance: {place or 'it'}: {first['msg']}") from None
        model = cls()
        model.parameters = _array("parameters", read.parameters, model.parameters.shape)
        model.squares = _array("squares", read.squares, model.squares.shape)
        return model


def _array(name: str, values: list[list[list[list[float]]]], shape: tuple[int, ...]) -> Doubles:
    try:
        array = np.array(values, dtype=np.float64)
    except ValueError:
        raise InvalidSettings(
            f"learned acceptance: {name} must have shape {shape}, got lists of unequal length"
        ) from None
    if array.shape != shape:
        raise InvalidSettings(f"learned acceptance: {name} must have shape {shape}, got {array.shape}")
    return array
