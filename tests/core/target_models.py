"""Small random targets for tests, each with an untouched twin for `transformers`' own forward and `generate`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

from dflash_core.contracts import (
    ContextChunk,
    DraftTree,
    Outcome,
    OutcomeStatus,
    Prefill,
    RoundRequest,
    SamplingParams,
    SequenceKey,
    TreeRows,
)
from dflash_core.models.drafter import ContextProjection
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention
from dflash_core.raw_tensor import from_raw
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.target import TargetRound, TargetRunner
from dflash_core.runners.target_loading import TargetFeatures
from dflash_core.trees.structure import root_only
from tests.core.target_configs import CONFIGS, VOCAB_SIZE

TARGET_LAYER_IDS = (0, 2)  # 2 is the last layer: after the final norm

SAMPLINGS = {
    "greedy": SamplingParams(),
    "warm": SamplingParams(temperature=0.7, top_k=20, top_p=0.9, seed=11),
    "hot": SamplingParams(temperature=1.0, seed=2**63 + 5),
}


@dataclass(frozen=True)
class Subject:
    """A runner, and the same model as transformers runs it."""

    runner: TargetRunner
    twin: PreTrainedModel
    projection: ContextProjection


def make_subject(
    config: str | PreTrainedConfig = "qwen3", device: torch.device | str = "cpu", **settings: Any
) -> Subject:
    """A subject of one of `CONFIGS`, or of a config with their sizes; `settings` are `TargetSettings`."""
    config = CONFIGS[config] if isinstance(config, str) else config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Eager: the one implementation of transformers that knows softcaps, and a plain loop over experts.
        twin = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation="eager", experts_implementation="eager"
        ).eval()
        for name, parameter in twin.named_parameters():
            # Initial weights are so small that every logit is nearly the same.
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.2)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        model.load_state_dict(twin.state_dict())
        model.to(device)
        projection = _projection().to(device)
    features = TargetFeatures(TARGET_LAYER_IDS, projection, "fc")
    defaults = TargetSettings(kv_block_size=4, num_blocks=64, max_rows=256, max_tree_rows=128, device="cpu")
    runner = TargetRunner(model, features, defaults.model_copy(update=settings))
    return Subject(runner, twin, projection)


def _projection() -> ContextProjection:
    config = DrafterConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        draft_block_size=4,
        num_target_layers=3,
        target_layer_ids=TARGET_LAYER_IDS,
        mask_token_id=1,
        layers=(LayerAttention(None, False),),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
    )
    projection = ContextProjection(config).eval().requires_grad_(False)
    torch.nn.init.normal_(projection.hidden_norm.weight, 1.0, 0.3)
    return projection


def random_prompt(seed: int, length: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng([seed, 77]).integers(0, VOCAB_SIZE, length).astype(np.int32)


def prefill_of(
    key: SequenceKey,
    token_ids: npt.NDArray[np.int32],
    start: int = 0,
    end: int | None = None,
    sampling: SamplingParams | None = None,
    drafter_address: str = "",
    features_from: int = 0,
) -> Prefill:
    """The chunk start … end of a prompt."""
    end = len(token_ids) if end is None else end
    return Prefill(
        key,
        token_ids[start:end],
        start,
        is_last=end == len(token_ids),
        num_prompt_tokens=len(token_ids),
        sampling=sampling or SamplingParams(),
        drafter_address=drafter_address,
        features_from=features_from,
    )


def run(runner: TargetRunner, round_id: int = 1, **parts: Any) -> TargetRound:
    return runner.run_round(RoundRequest(round_id, **parts))


def ok(outcome: Outcome) -> Outcome:
    assert outcome.status is OutcomeStatus.OK, outcome
    return outcome


def decode_plainly(
    runner: TargetRunner,
    prompt: npt.NDArray[np.int32],
    num_tokens: int,
    sampling: SamplingParams | None = None,
    key: SequenceKey | None = None,
) -> list[int]:
    """`num_tokens` tokens with one root per round, then releases the sequence."""
    key = key or SequenceKey("plain", 0)
    outcome = ok(run(runner, prefills=(prefill_of(key, prompt, sampling=sampling),)).result.outcomes[0])
    tokens = [outcome.bonus_token]
    while len(tokens) < num_tokens:
        tree = TreeRows(key, outcome.cached_len, root_only(tokens[-1]))
        outcome = ok(run(runner, trees=(tree,)).result.outcomes[0])
        tokens.append(outcome.bonus_token)
    run(runner, releases=(key,))
    return tokens


def generate(model: PreTrainedModel, prompt: npt.NDArray[np.int32], num_tokens: int) -> list[int]:
    """Greedy tokens by transformers' own loop."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    with torch.inference_mode():
        output = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, attention_mask=torch.ones_like(ids))
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def dense_features(subject: Subject, token_ids: Sequence[int]) -> Tensor:
    """`[tokens, hidden]`: hidden_states[i + 1] of the captured layers, then fc and hidden_norm."""
    with torch.inference_mode():
        hidden = subject.twin(torch.tensor([list(token_ids)]), output_hidden_states=True).hidden_states
        raw = torch.cat([hidden[i + 1][0] for i in TARGET_LAYER_IDS], dim=-1)
        return subject.projection.project_context(raw)


def positions_and_features(chunks: Sequence[ContextChunk]) -> tuple[list[int], Tensor]:
    """What a drafter was sent: positions, and `[positions, hidden]`."""
    positions = [chunk.start + i for chunk in chunks for i in range(chunk.features.shape[0])]
    return positions, torch.cat([from_raw(chunk.features) for chunk in chunks])


def random_tree(rng: np.random.Generator, root: int, right: Sequence[int], num_nodes: int, max_depth: int) -> DraftTree:
    """A random tree whose tokens are now and then those of `right`, the true continuation of the root."""
    children: dict[tuple[int, ...], set[int]] = {(): set()}
    while sum(len(c) for c in children.values()) < num_nodes:
        paths = [path for path in children if len(path) < max_depth]
        path = paths[rng.integers(len(paths))]
        is_right = len(path) < len(right) and list(path) == list(right[: len(path)])
        token = right[len(path)] if is_right and rng.random() < 0.5 else int(rng.integers(VOCAB_SIZE))
        children[path].add(int(token))
        children.setdefault((*path, int(token)), set())
    rows: list[tuple[int, int]] = []

    def visit(path: tuple[int, ...], token: int) -> None:
        rows.append((token, len(path)))
        for child in rng.permutation(sorted(children[path])).tolist():
            visit((*path, child), child)

    visit((), root)
    return DraftTree(np.array([t for t, _ in rows], np.int32), np.array([d for _, d in rows], np.int32))
