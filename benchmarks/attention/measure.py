"""One size after another, all arms on the same inputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.inputs import ARMS, FLEX, OURS, SDPA, Inputs, Size
from benchmarks.device import free_memory
from benchmarks.limits import Limit, Rates
from benchmarks.timing import TooSlow, captured, median_ms, median_wall_ms
from dflash_core.attention.split_kv.work_list import HeadShape

LONGEST_MS = 1000.0  # of one call
BUDGET_MS = {"cuda": 200.0, "cpu": 40.0}  # of one arm at one size


@dataclass(frozen=True, slots=True)
class Finding:
    """`ms` by arm; `missing` says of the others why not. `error`: ours against SDPA, relative Euclidean norm."""

    size: Size
    limit: Limit | None = None  # None where not even the inputs were made
    ms: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    prepare_ms: float | None = None  # what the layers of a round share, as the host sees it: not in `ms`
    listing_ms: float | None = None  # the kernel in it, where there is one
    error: float | None = None

    @property
    def of_limit(self) -> float | None:
        """1 where ours takes no longer than it must."""
        return self.limit.larger_ms / self.ms[OURS] if self.limit and OURS in self.ms else None

    @property
    def best_baseline(self) -> float | None:
        """Milliseconds of the fastest other arm over those of ours."""
        others = [ms for arm, ms in self.ms.items() if arm != OURS]
        return min(others) / self.ms[OURS] if others and OURS in self.ms else None

    def with_more(self, other: Finding) -> Finding:
        """This finding with the arms that `other` has of the same size."""
        missing = {arm: reason for arm, reason in self.missing.items() if arm not in other.ms} | other.missing
        return Finding(
            size=self.size,
            limit=self.limit or other.limit,
            ms=self.ms | other.ms,
            missing=missing,
            prepare_ms=self.prepare_ms or other.prepare_ms,
            listing_ms=self.listing_ms or other.listing_ms,
            error=other.error if self.error is None else self.error,
        )

    def as_dict(self) -> dict[str, Any]:
        limit = None if self.limit is None else self.limit.as_dict()
        ratios = {"of_limit": self.of_limit, "best_baseline_over_ours": self.best_baseline}
        return asdict(self) | {"limit": limit} | ratios


def not_measured(size: Size, reason: str, arms: Sequence[str] = ARMS) -> Finding:
    return Finding(size, missing=dict.fromkeys(arms, reason))


def measure(size: Size, heads: HeadShape, device: torch.device, rates: Rates, arms: Sequence[str] = ARMS) -> Finding:
    """All `arms` at one size. What does not fit, takes too long or, being a library's, fails, is `missing`."""
    try:
        return _measure(size, heads, device, rates, arms)
    except torch.OutOfMemoryError:
        return not_measured(size, "no memory", arms)
    finally:
        free_memory(device)


def _measure(size: Size, heads: HeadShape, device: torch.device, rates: Rates, arms: Sequence[str]) -> Finding:
    inputs = Inputs(size, heads, device)
    ms: dict[str, float] = {}
    missing: dict[str, str] = {}
    outputs: dict[str, Tensor] = {}
    for arm in arms:
        try:
            if arm == FLEX:
                torch.compiler.reset()  # code is kept for a few shapes only; beyond them compiling would fail
            run = inputs.arm(arm)
            outputs[arm] = inputs.as_rows(arm, run())
            ms[arm] = median_ms(captured(run, device), device, BUDGET_MS[device.type], LONGEST_MS)
        except torch.OutOfMemoryError:
            missing[arm] = "no memory"
        except TooSlow:
            missing[arm] = "too slow"
        except RuntimeError as failure:
            if arm == OURS:
                raise
            missing[arm] = "failed"
            sys.stderr.write(f"{arm} at {size}: {failure}\n")
    difference = None
    if OURS in outputs and SDPA in outputs:
        expected = outputs[SDPA].float()
        difference = float((outputs[OURS].float() - expected).norm() / expected.norm())
    return Finding(
        size=size,
        limit=inputs.work.limit(rates),
        ms=ms,
        missing=missing,
        prepare_ms=_prepare_ms(inputs, device),
        listing_ms=_listing_ms(inputs, device),
        error=difference,
    )


def _prepare_ms(inputs: Inputs, device: torch.device) -> float:
    """Batches have no list yet when their turn comes, as in a round."""
    batches = [inputs.new_batch() for _ in range(21)]
    return median_wall_ms(lambda: inputs.prepare(batches.pop()), device, num_calls=20)


def _listing_ms(inputs: Inputs, device: torch.device) -> float | None:
    return median_ms(captured(inputs.listing(), device), device) if device.type == "cuda" else None
