"""The drafter's forward against section 6 of ARCHITECTURE, stated again with plain matrix products in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dflash_core.contracts import ContextChunk, DraftBlock, SamplingParams, SequenceKey
from dflash_core.errors import CheckpointMismatch, CheckpointNotFound
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention
from dflash_core.models.drafter_files import load_context_projection, load_drafter, save_drafter
from dflash_core.raw_tensor import to_raw
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings
from tests.tiny import TinyPair, make_tiny_pair

FULL = LayerAttention(None, False)
LAYER_KINDS = {
    "full": (FULL, FULL),
    "sliding": (LayerAttention(6, True), FULL),
    "all sliding": (LayerAttention(3, True), LayerAttention(3, True)),
    "bidirectional window": (LayerAttention(4, False),),
    "all causal": (LayerAttention(5, True), LayerAttention(None, True)),
}


class Section6:
    """One block of one sequence, in float64; reads the checkpoint's files and nothing of the drafter's code."""

    def __init__(self, pair: TinyPair) -> None:
        self.weights = {n: t.double() for n, t in load_file(pair.drafter / "model.safetensors").items()}
        self.target = {n: t.double() for n, t in load_file(pair.target / "model.safetensors").items()}
        self.settings = pair.settings

    def project(self, raw_features: Tensor) -> Tensor:
        return self._norm(raw_features @ self.weights["fc.weight"].T, "hidden_norm.weight")

    def logits(self, context: Tensor, root: int, start: int, mask: int = 1) -> Tensor:
        """`[depth, vocab]` after `context [start, hidden]`."""
        s = self.settings
        embedding = self.target["model.embed_tokens.weight"]
        hidden = embedding[torch.tensor([root] + [mask] * (s.draft_block_size - 1))]
        block_positions = list(range(start, start + s.draft_block_size))
        positions = list(range(start + s.draft_block_size))
        for i, kind in enumerate(s.draft_layers):
            name = f"layers.{i}."
            normed = self._norm(hidden, name + "input_layernorm.weight")
            query = self._heads(normed, name + "self_attn.q_proj.weight", name + "self_attn.q_norm.weight")
            both = torch.cat([context, normed])  # the context does not pass through input_layernorm
            key = self._heads(both, name + "self_attn.k_proj.weight", name + "self_attn.k_norm.weight")
            value = (both @ self.weights[name + "self_attn.v_proj.weight"].T).view(len(both), -1, s.head_dim)
            turned_keys = self._rotate(key, positions)
            turned_queries = self._rotate(query, block_positions)
            rows = []
            for r, row in enumerate(block_positions):
                seen = [k for k, p in enumerate(positions) if self._sees(kind, row, p, in_block=k >= start)]
                heads = []
                for h in range(s.num_heads):
                    kv_head = h // (s.num_heads // s.num_kv_heads)
                    scores = turned_keys[seen, kv_head] @ turned_queries[r, h] / math.sqrt(s.head_dim)
                    heads.append(torch.softmax(scores, 0) @ value[seen, kv_head])
                rows.append(torch.cat(heads))
            hidden = hidden + torch.stack(rows) @ self.weights[name + "self_attn.o_proj.weight"].T
            normed = self._norm(hidden, name + "post_attention_layernorm.weight")
            gate = normed @ self.weights[name + "mlp.gate_proj.weight"].T
            up = normed @ self.weights[name + "mlp.up_proj.weight"].T
            gated = gate / (1 + torch.exp(-gate)) * up
            hidden = hidden + gated @ self.weights[name + "mlp.down_proj.weight"].T
        return self._norm(hidden, "norm.weight")[1:] @ self.target["lm_head.weight"].T

    @staticmethod
    def _sees(kind: LayerAttention, row: int, key: int, in_block: bool) -> bool:
        if kind.sliding_window is not None and key <= row - kind.sliding_window:
            return False
        return not (kind.is_causal and in_block and key > row)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.weights[name]

    def _heads(self, states: Tensor, projection: str, norm: str) -> Tensor:
        heads = (states @ self.weights[projection].T).view(len(states), -1, self.settings.head_dim)
        return self._norm(heads, norm)

    @staticmethod
    def _rotate(heads: Tensor, positions: Sequence[int]) -> Tensor:
        half = heads.shape[-1] // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.tensor(positions, dtype=torch.float64)[:, None, None] * frequencies
        first, second = heads[..., :half], heads[..., half:]
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_forward_is_section_6(tmp_path: Path, kind: str) -> None:
    """Through the runner: paged, two blocks of different lengths in one batch."""
    pair = make_tiny_pair(tmp_path, seed=3, draft_layers=LAYER_KINDS[kind], drafter_noise=1.0)
    oracle = Section6(pair)
    settings = DrafterSettings(dtype="float32", kv_block_size=4, num_blocks=16, num_candidates=300)
    runner = DrafterRunner.load(str(pair.drafter), str(pair.target), settings)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(23, 2 * pair.settings.hidden_size, generator=generator)
    projected = load_context_projection(pair.drafter).project_context(raw)
    torch.testing.assert_close(projected.double(), oracle.project(raw.double()), atol=1e-5, rtol=1e-5)

    blocks = []
    for name, root, context_len in (("a", 17, 23), ("b", 250, 5), ("c", 9, 0)):
        key = SequenceKey(name, 0)
        runner.open(key, 0)
        runner.append_context([ContextChunk(key, 0, to_raw(projected[:context_len]))])
        blocks.append(DraftBlock(key, root, context_len, SamplingParams()))
    for block, draft in zip(blocks, runner.draft(blocks), strict=True):
        logits = oracle.logits(projected.double()[: block.context_len], block.root_token, block.context_len)
        expected = torch.log_softmax(logits, -1)
        scores = np.empty(draft.scores.shape, np.float32)
        np.put_along_axis(scores, draft.token_ids, draft.scores, axis=1)
        np.testing.assert_allclose(scores, expected.numpy(), atol=2e-4)


def test_batch_dimensions_change_nothing(tmp_path: Path) -> None:
    """Training's `[batch, rows, hidden]` gives what the packed rows give."""
    pair = make_tiny_pair(tmp_path, drafter_noise=1.0)
    model = load_drafter(pair.drafter)
    config = model.config
    embeds = torch.randn(3, config.draft_block_size, config.hidden_size)
    positions = torch.arange(config.draft_block_size) + torch.tensor([[0], [7], [30]])

    def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(-2, -3) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(-2, -3)

    together = model(embeds, positions, attend)
    for i in range(3):
        torch.testing.assert_close(together[i], model(embeds[i], positions[i], attend))


def test_a_saved_drafter_is_loaded_again(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path, draft_layers=LAYER_KINDS["sliding"])
    model = load_drafter(pair.drafter)
    save_drafter(model, tmp_path / "again")
    again = load_drafter(tmp_path / "again", torch.bfloat16)
    assert again.config == model.config
    assert again.fc.weight.dtype == torch.bfloat16
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name].float()), name
    # The rotary frequencies stay in fp32 whatever the dtype of the weights.
    assert torch.equal(model.rotary_emb.inv_freq, again.rotary_emb.inv_freq)


def test_weights_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path)
    path = pair.drafter / "model.safetensors"
    weights = load_file(path)
    weights["layers.7.mlp.up_proj.weight"] = weights.pop("norm.weight")
    weights["fc.weight"] = torch.zeros(32, 96)
    save_file(weights, path)
    with pytest.raises(CheckpointMismatch) as caught:
        load_drafter(pair.drafter)
    message = str(caught.value)
    assert "norm.weight is missing" in message
    assert "layers.7.mlp.up_proj.weight is not wanted" in message
    assert "fc.weight has shape [32, 96], the config says [32, 64]" in message
    path.unlink()
    with pytest.raises(CheckpointNotFound, match=r"model\.safetensors"):
        load_drafter(pair.drafter)


def test_config_survives_the_published_form(tmp_path: Path) -> None:
    for i, layers in enumerate(LAYER_KINDS.values()):
        config = load_drafter(make_tiny_pair(tmp_path / str(i), draft_layers=layers).drafter).config
        assert config.layers == layers
        assert DrafterConfig.from_json(config.to_json()) == config
