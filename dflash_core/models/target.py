"""`TargetModel`: a causal language model of `transformers`, run on packed rows with paged attention."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dflash_core.attention.registration import PAGED_TREE, AttentionStep, register_paged_tree
from dflash_core.errors import UnsupportedModel
from dflash_core.models.attention_probe import kv_shape, probe_attention
from dflash_core.models.capture import capture_obstacle
from dflash_core.models.cpu_layers import fuse_layers
from dflash_core.models.experts import group_experts
from dflash_core.models.target_support import check_supported

_SAMPLED_BYTES = 4096
"""Bytes of each tensor that enter the fingerprint: enough to tell checkpoints apart, little enough for large ones."""
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm")  # what models call it


class TargetOutput(NamedTuple):
    logits: Tensor  # [len(logit_rows), vocab_size]
    captured: list[Tensor]  # [num_rows, hidden_size] each, in the order of `target_layer_ids`

    def features_of(self, rows: Tensor | slice) -> Tensor:
        """`[len(rows), num_captured · hidden_size]`, layer after layer: what `ContextProjection` takes."""
        return torch.cat([hidden[rows] for hidden in self.captured], dim=-1)


class TargetModel:
    """The model's own forward, with two things added: our attention, and the outputs of `target_layer_ids`.

    Layer id i stands for the output of decoder layer i counted from 0; for the last layer, after the final norm.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        target_layer_ids: Sequence[int] = (),
        fuse: Callable[[nn.Module], None] = fuse_layers,
    ) -> None:
        """Takes the model over: sets its attention and hooks its layers. Raises `UnsupportedModel`.

        `fuse` replaces modules by faster ones that compute the same.
        """
        config = model.config
        check_supported(config)
        register_paged_tree()
        model.eval().requires_grad_(False)
        self._has_experts = group_experts(model)
        attention_calls = probe_attention(model)
        model.set_attn_implementation(PAGED_TREE)
        self._fingerprint = _fingerprint(model)  # before anything is replaced, which depends on the device
        fuse(model)
        self.model = model
        self.name: str = config.model_type
        self.num_heads = attention_calls[0].num_heads  # of this rank, where the model is split
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self.max_model_len: int = config.max_position_embeddings
        self.vocab_size: int = config.vocab_size  # with padding
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.kv_shape = kv_shape(config, self.dtype, attention_calls)
        self._taken: dict[int, Tensor] = {}  # what the hooks of a running forward have seen
        self._hook(target_layer_ids)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        given = getattr(self.model.generation_config, "eos_token_id", None)
        if given is None:
            given = self.model.config.eos_token_id
        if given is None:
            return ()
        return (given,) if isinstance(given, int) else tuple(given)

    @property
    def capture_obstacle(self) -> str | None:
        """Why `torch.compile` and CUDA graphs cannot take `forward`; None: they can, with Triton attention."""
        return capture_obstacle(self.model, self._has_experts)

    def forward(self, token_ids: Tensor, positions: Tensor, step: AttentionStep, logit_rows: Tensor) -> TargetOutput:
        """Runs the rows `token_ids [num_rows]` at `positions [num_rows]`, with logits of `logit_rows` (all int64)."""
        output = self.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=logit_rows,
            paged_step=step,
        )
        captured = [self._taken[place] for place in range(len(self._taken))]
        self._taken.clear()
        return TargetOutput(output.logits[0], captured)

    def fingerprint(self) -> str:
        """A hash of every tensor's name, shape, dtype and some of its values, as loaded."""
        return self._fingerprint

    def _hook(self, target_layer_ids: Sequence[int]) -> None:
        """Before any compilation: hooks that come later are silently left out of a compiled forward."""
        decoder = self.model.get_decoder()
        layers = getattr(decoder, "layers", None)
        norm = next((module for name in _FINAL_NORMS if (module := getattr(decoder, name, None)) is not None), None)
        if not isinstance(layers, nn.ModuleList) or norm is None:
            raise UnsupportedModel(f"{type(decoder).__name__} has no `layers` and final norm to read features from")
        assert all(0 <= i < len(layers) for i in target_layer_ids), f"{target_layer_ids} of {len(layers)} layers"
        for place, layer_id in enumerate(target_layer_ids):
            module = norm if layer_id == len(layers) - 1 else layers[layer_id]
            module.register_forward_hook(_put_into(self._taken, place))


def _fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() * flat.element_size() // _SAMPLED_BYTES)
        digest.update(flat[::stride].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _put_into(taken: dict[int, Tensor], place: int) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
    """A hook that keeps a layer's output `[1, num_rows, hidden_size]`."""

    def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        taken[place] = (output[0] if isinstance(output, tuple) else output)[0]

    return hook
