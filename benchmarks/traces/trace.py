"""What was recorded of a pair, and its file. From it any way to build trees can be judged without a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dflash_core.contracts import SamplingParams


@dataclass(frozen=True, slots=True)
class SequenceTrace:
    """One output. Drafts are those of the drafter when the output's tokens before position i are committed.

    The target's tokens do not depend on drafts, so a draft at i predicts `token_ids[i + 1:]` whatever was drafted
    before.
    """

    sampling: SamplingParams
    prompt_ids: npt.NDArray[np.int32]  # [num_prompt_tokens]
    token_ids: npt.NDArray[np.int32]  # [num_tokens] of the output; root i is token_ids[i]
    candidate_ids: npt.NDArray[np.int32]  # [num_tokens, depth, K] after root i, best first
    scores: npt.NDArray[np.float32]  # [num_tokens, depth, K] log-probabilities


@dataclass(frozen=True, slots=True)
class Trace:
    target: str
    drafter: str
    sequences: tuple[SequenceTrace, ...]

    def at(self, temperature: float) -> tuple[SequenceTrace, ...]:
        return tuple(sequence for sequence in self.sequences if sequence.sampling.temperature == temperature)

    def save(self, path: Path) -> None:
        """As compressed npz; scores in half precision, token ids in 16 bits where they fit."""
        about = {
            "target": self.target,
            "drafter": self.drafter,
            "sequences": [{"sampling": asdict(sequence.sampling)} for sequence in self.sequences],
        }
        largest = max(
            int(ids.max(initial=0))
            for sequence in self.sequences
            for ids in (sequence.prompt_ids, sequence.token_ids, sequence.candidate_ids)
        )
        ids = np.uint16 if largest < 1 << 16 else np.int32
        arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for index, sequence in enumerate(self.sequences):
            arrays[f"prompt-{index}"] = sequence.prompt_ids.astype(ids)
            arrays[f"tokens-{index}"] = sequence.token_ids.astype(ids)
            arrays[f"candidates-{index}"] = sequence.candidate_ids.astype(ids)
            arrays[f"scores-{index}"] = sequence.scores.astype(np.float16)
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # its stub knows no other keyword than one

    @classmethod
    def load(cls, path: Path) -> Trace:
        with np.load(path) as arrays:
            about = json.loads(arrays["about"].tobytes())
            sequences = tuple(
                SequenceTrace(
                    SamplingParams(**told["sampling"]),
                    arrays[f"prompt-{index}"].astype(np.int32),
                    arrays[f"tokens-{index}"].astype(np.int32),
                    arrays[f"candidates-{index}"].astype(np.int32),
                    arrays[f"scores-{index}"].astype(np.float32),
                )
                for index, told in enumerate(about["sequences"])
            )
        return cls(about["target"], about["drafter"], sequences)
