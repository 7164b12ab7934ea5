"""`TargetModel`: a causal language model of `transformers`, run on packed rows with paged attention."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dflash_core.attention.registration import PAGED_TREE, PagedStep, register_paged_tree
from dflash_core.errors import UnsupportedModel
from dflash_core.models.attention_probe import kv_shape, probe_attention
from dflash_core.models.capture import capture_obstacle
from dflash_core.models.cpu_layers import fuse_layers
from dflash_core.models.experts import group_experts
from dflash_core.models.target_support import check_supported

_SAMPLED_BYTES = 4096
"""Bytes of each tensor that enter the fingerprint: enough to tell checkpoints apart, little enough for large ones."""
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm")  # what models call it


class TargetModel:
    """The model's own forward, with two things added: our attention, and the outputs of `target_layer_ids`.

    Layer id i stands for the output of decoder layer i counted from 0; for the last layer, after the final norm.
    """

    def __init__(self, model: PreTrainedModel, target_layer_ids: Sequence[int] = (), max_rows: int = 1024) -> None:
        """Takes the model over: sets its attention and hooks its layers. Raises `UnsupportedModel`."""
        config = model.config
        check_supported(config)
        register_paged_tree()
        model.eval().requires_grad_(False)
        self._has_experts = group_experts(model)
        attention_calls = probe_attention(model)
        model.set_attn_implementation(PAGED_TREE)
        self._fingerprint = _fingerprint(model)  # before anything is replaced, which depends on the device
        fuse_layers(model)
        self.model = model
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self.max_model_len: int = config.max_position_embeddings
        self.vocab_size: int = config.vocab_size  # with padding
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.kv_shape = kv_shape(config, self.dtype, attention_calls)
        self._captured = torch.zeros(
            max_rows, len(target_layer_ids), self.hidden_size, dtype=self.dtype, device=self.device
        )
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

    def forward(self, token_ids: Tensor, positions: Tensor, step: PagedStep, logit_rows: Tensor) -> Tensor:
        """Runs the rows `token_ids [num_rows]` at `positions [num_rows]`; logits `[len(logit_rows), vocab_size]` of
        those rows (all int64). `captured` then holds the same rows."""
        output = self.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=logit_rows,
            paged_step=step,
        )
        logits: Tensor = output.logits[0]
        return logits

    def captured(self, rows: Tensor) -> Tensor:
        """`[len(rows), num_captured · hidden_size]`: of the last forward's `rows` (int64), layer after layer."""
        return self._captured.index_select(0, rows).flatten(1)

    def fingerprint(self) -> str:
        """A hash of every tensor's name, shape, dtype and some of its values, as loaded."""
        return self._fingerprint

    def _hook(self, target_layer_ids: Sequence[int]) -> None:
        """Copies into a static buffer: a hook's output is not kept by a compiled or graph-captured forward."""
        decoder = self.model.get_decoder()
        layers = getattr(decoder, "layers", None)
        norm = next((module for name in _FINAL_NORMS if (module := getattr(decoder, name, None)) is not None), None)
        if not isinstance(layers, nn.ModuleList) or norm is None:
            raise UnsupportedModel(f"{type(decoder).__name__} has no `layers` and final norm to read features from")
        assert all(0 <= i < len(layers) for i in target_layer_ids), f"{target_layer_ids} of {len(layers)} layers"
        for place, layer_id in enumerate(target_layer_ids):
            module = norm if layer_id == len(layers) - 1 else layers[layer_id]
            module.register_forward_hook(_copy_into(self._captured[:, place]))


def _fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() * flat.element_size() // _SAMPLED_BYTES)
        digest.update(flat[::stride].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _copy_into(buffer: Tensor) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
    """A hook that copies a layer's output `[1, num_rows, hidden_size]` to the first rows of `buffer`."""

    def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        buffer[: hidden.shape[1]] = hidden[0]

    return hook
