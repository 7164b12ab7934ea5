"""The model card takes its figures from the reports, all of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dflash_core.training.drafter import DrafterRecipe
from dflash_core.training.target import TargetRecipe
from scripts.make_model_card import card


def _entry(arm: str, temperature: float, acceptance_length: float | None, concurrency: int = 1) -> dict[str, Any]:
    return {
        "arm": arm,
        "temperature": temperature,
        "concurrency": concurrency,
        "acceptance_length": acceptance_length,
        "num_identical": 4,
        "num_outputs": 4,
    }


def test_card() -> None:
    report = {
        "machine": {"processor": "A processor", "cores": 2, "commit": "abc"},
        "settings": {"num_prompts": 4, "max_tokens": 128},
        "results": [
            _entry("HF generate", 0.0, None),
            _entry("plain", 0.0, 1.0),
            _entry("tree 16", 0.0, 4.125),
            _entry("tree 16", 0.0, 9.0, concurrency=8),
            _entry("tree 16", 1.0, 2.5),
            _entry("tree 16 w/o noise", 1.0, 1.5),
        ],
    }
    target = {"recipe": asdict(TargetRecipe()), "train_tokens": 9_000_000, "held_out_loss": 2.71828}
    drafter = {"recipe": asdict(DrafterRecipe()), "sequences": 5120}
    text = card(report, target, drafter)
    for expected in (
        "9,000,000 tokens",
        "5,120 sequences",
        "2.718 nats",
        "24 of 24",
        "| tree 16 | 4.12 | 2.50 |",
        "| tree 16 w/o noise |  | 1.50 |",
        "A processor, 2 cores, commit abc",
        "learning_rate 0.004",
    ):
        assert expected in text, expected
    assert "| plain" not in text
    assert "9.00" not in text
    assert "{" not in text
