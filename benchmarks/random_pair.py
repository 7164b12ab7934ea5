"""A target and its drafter of given sizes with random weights, made where they run: no download, no copy.

The target's choice is known: after token t comes `successor(t)`. Its residual stream is the token's own embedding with
little added by the layers, and its head is the embedding again, shifted by one token; where the two are tied, a token
follows itself. So a benchmark can make draft trees that are accepted or not, and can tell a wrong answer. Neither
changes what a round computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from dflash_core.contracts import DrafterInfo
from dflash_core.models.drafter import ContextProjection, DFlashDrafter, qwen3_config
from dflash_core.models.drafter_config import DrafterConfig, LayerAttention, default_target_layer_ids
from dflash_core.models.shared_tensors import EmbeddingAndHead
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings, TargetSettings
from dflash_core.runners.target import TargetRunner
from dflash_core.runners.target_loading import TargetFeatures

FINGERPRINT = "random"
_LAYER_SCALE = 0.01  # of what a layer adds to the residual stream
_HEAD_SCALE = 0.02


@dataclass(frozen=True, slots=True)
class PairShape:
    """Sizes of a Qwen3 target and of a DFlash drafter of its width."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ties_embeddings: bool
    num_draft_layers: int = 5
    draft_block_size: int = 16

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """The layers that the drafter reads, by the rule of published drafters."""
        return default_target_layer_ids(self.num_layers, self.num_draft_layers)

    def target_config(self, max_model_len: int) -> Qwen3Config:
        return Qwen3Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=max_model_len,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=self.ties_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )

    def drafter_config(self, max_model_len: int) -> DrafterConfig:
        return DrafterConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            draft_block_size=self.draft_block_size,
            num_target_layers=self.num_layers,
            target_layer_ids=self.target_layer_ids,
            mask_token_id=self.vocab_size - 1,
            layers=(LayerAttention(None, False),) * self.num_draft_layers,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            max_position_embeddings=max_model_len,
        )

    def successor(self, token_id: int) -> int:
        """What the target chooses after a token, without noise."""
        return token_id if self.ties_embeddings else (token_id + 1) % self.vocab_size


QWEN3_8B = PairShape("qwen3-8b", 151936, 4096, 12288, 36, 32, 8, 128, ties_embeddings=False)
QWEN3_4B = PairShape("qwen3-4b", 151936, 2560, 9728, 36, 32, 8, 128, ties_embeddings=True)
MEDIUM = PairShape("medium", 4096, 256, 768, 8, 8, 4, 32, ties_embeddings=False, num_draft_layers=2, draft_block_size=8)
SMALL = PairShape("small", 512, 64, 128, 6, 4, 2, 16, ties_embeddings=False, num_draft_layers=2, draft_block_size=8)
SHAPES = {shape.name: shape for shape in (QWEN3_8B, QWEN3_4B, MEDIUM, SMALL)}


class RandomPair:
    """The models. Ask for twins before runners: a runner changes the model that it takes over."""

    def __init__(self, shape: PairShape, max_model_len: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._max_model_len = max_model_len
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            self.target: PreTrainedModel = AutoModelForCausalLM.from_config(
                shape.target_config(max_model_len), dtype=dtype, attn_implementation="sdpa"
            ).eval()
            self.drafter = DFlashDrafter(shape.drafter_config(max_model_len)).to(dtype).eval()
        self.drafter.rotary_emb = self._drafter_rotary()
        self.drafter.requires_grad_(False)
        # Kept by themselves: a runner on a CPU puts its own module in place of the head.
        self._embedding, self._head = _make_predictable(self.target, shape.ties_embeddings)

    def target_twin(self) -> PreTrainedModel:
        """The target as transformers runs it, with the same weights in the same memory."""
        config = self.shape.target_config(self._max_model_len)
        with torch.device("meta"):
            twin = AutoModelForCausalLM.from_config(config, dtype=self.dtype, attn_implementation="sdpa").eval()
        twin.load_state_dict(self.target.state_dict(), assign=True)
        decoder = twin.get_decoder()
        # Its frequencies are no parameters: made anew on the real device.
        decoder.rotary_emb = type(decoder.rotary_emb)(config).to(self.device)
        return cast(PreTrainedModel, twin.requires_grad_(False))

    def drafter_twin(self) -> DFlashDrafter:
        """The drafter with the same weights in the same memory."""
        with torch.device("meta"):
            twin = DFlashDrafter(self.drafter.config)
        twin.load_state_dict(self.drafter.state_dict(), assign=True)
        twin.rotary_emb = self._drafter_rotary()
        return twin.eval().requires_grad_(False)

    def target_runner(self, settings: TargetSettings) -> TargetRunner:
        """Warm, as a loaded one is. Raises as `TargetRunner`, and `torch.OutOfMemoryError`."""
        config = self.drafter.config
        with torch.device("meta"):
            projection = ContextProjection(config)
        weights = {
            name: tensor for name, tensor in self.drafter.state_dict().items() if name in projection.state_dict()
        }
        projection.load_state_dict(weights, assign=True)
        features = TargetFeatures(config.target_layer_ids, projection.eval().requires_grad_(False), FINGERPRINT)
        runner = TargetRunner(self.target, features, settings, name=self.shape.name)
        runner.warm_up()
        return runner

    def drafter_runner(self, settings: DrafterSettings) -> DrafterRunner:
        """Warm, as a loaded one is. Raises as `DrafterRunner`, and `torch.OutOfMemoryError`."""
        shape = self.shape
        info = DrafterInfo(
            model=shape.name,
            draft_block_size=shape.draft_block_size,
            num_candidates=min(settings.num_candidates, shape.vocab_size),
            hidden_size=shape.hidden_size,
            vocab_size=shape.vocab_size,
            num_target_layers=shape.num_layers,
            fingerprint=FINGERPRINT,
        )
        runner = DrafterRunner(self.drafter, self.embedding_and_head(), settings, info)
        runner.warm_up()
        return runner

    def embedding_and_head(self) -> EmbeddingAndHead:
        return EmbeddingAndHead(self._embedding, self._head, None, None, None)

    def _drafter_rotary(self) -> Qwen3RotaryEmbedding:
        """In fp32 whatever the dtype."""
        return Qwen3RotaryEmbedding(qwen3_config(self.drafter.config)).to(self.device)


@torch.no_grad()
def _make_predictable(target: PreTrainedModel, ties_embeddings: bool) -> tuple[Tensor, Tensor]:
    """Embedding and head."""
    target.requires_grad_(False)
    embedding = cast(Tensor, target.get_input_embeddings().weight).detach().normal_()
    head = cast(Tensor, target.get_output_embeddings().weight).detach()
    if not ties_embeddings:
        head.copy_(embedding.roll(1, dims=0)).mul_(_HEAD_SCALE)
    for name, weight in target.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(_LAYER_SCALE)
    return embedding, head
