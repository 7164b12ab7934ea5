"""One whole benchmark: what a user asked for, in; rows and samples, out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from cluster.bench.arms import Arm, Cell, References, arms_at
from cluster.bench.measure import RunPlan, run, warm_up
from cluster.bench.models import BenchModels, ModelOptions
from cluster.bench.prompts import Prompt
from cluster.bench.samples import GroupPrompt, Sample
from cluster.bench.turns import Lane
from cluster.router.timeline import Timeline
from dflash_core.errors import InvalidRequest, PromptTooLong


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Raises `InvalidRequest` for a value outside its range."""

    models: ModelOptions
    tree_budgets: tuple[int, ...] = (8, 16, 32, 64)
    concurrencies: tuple[int, ...] = (1, 8)
    temperatures: tuple[float, ...] = (0.0, 1.0)
    max_tokens: int = 128  # where the prompt itself names none
    repeats: int = 1
    max_prompts: int | None = None  # most prompts that a cell decodes, but at least a group; None: all
    references: References = References.ALL
    time_limit_s: float | None = None  # no further group is begun after that; None: none
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tree_budgets", "concurrencies", "temperatures"):
            if not getattr(self, name):
                raise InvalidRequest(f"{name} must not be empty", param=name)
        least = {
            "concurrencies": min(self.concurrencies),
            "max_tokens": self.max_tokens,
            "repeats": self.repeats,
            "max_prompts": 1 if self.max_prompts is None else self.max_prompts,
        }
        for name, value in least.items():
            if value < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {value}", param=name)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"references": self.references.value}


class Benchmark:
    """Loads on construction. `with` it, and within `warm_up`, then `run`."""

    def __init__(self, settings: BenchSettings, prompts: Sequence[Prompt]) -> None:
        """Raises what loading raises, `InvalidRequest`, and `PromptTooLong` for a prompt that does not fit."""
        self._models = BenchModels(settings.models)
        cells = [
            Cell(t, c) for t in dict.fromkeys(settings.temperatures) for c in dict.fromkeys(settings.concurrencies)
        ]
        self.plan = RunPlan(
            prompts=tuple(self._tokenised(prompt, index, settings) for index, prompt in enumerate(prompts)),
            arms={
                cell: arms_at(cell.temperature, settings.tree_budgets, self._models.draft_depth, settings.references)
                for cell in cells
            },
            repeats=settings.repeats,
            max_prompts=settings.max_prompts,
        )
        self._time_limit_s = settings.time_limit_s
        self._lanes: dict[Arm, Lane] = {}

    @property
    def num_warm_ups(self) -> int:
        return sum(map(len, self.plan.arms.values()))

    def __enter__(self) -> Self:
        self._lanes = self._models.lanes(arm for arms in self.plan.arms.values() for arm in arms)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._models.close()

    def warm_up(self) -> Iterator[Arm]:
        """Yields once per arm and cell."""
        return warm_up(self.plan, self._lanes)

    def run(self, timeline: Timeline | None = None) -> Iterator[Sample]:
        """Yields `plan.num_samples` samples, fewer where time runs out: then complete groups still."""
        return run(self.plan, self._lanes, self._models.has_room_for, self._time_limit_s, timeline)

    def _tokenised(self, prompt: Prompt, index: int, settings: BenchSettings) -> GroupPrompt:
        token_ids = tuple(self._models.tokenizer.encode(prompt.prompt).ids)
        max_tokens = prompt.max_tokens or settings.max_tokens
        if len(token_ids) + max_tokens > self._models.max_model_len:
            raise PromptTooLong(
                f"prompt {index + 1} has {len(token_ids)} tokens and asks for {max_tokens}: together more than the "
                f"target's {self._models.max_model_len}"
            )
        return GroupPrompt(token_ids, max_tokens, settings.seed + index)
