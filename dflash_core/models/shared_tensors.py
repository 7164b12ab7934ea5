"""What target and drafter share on disk: the target's embedding and head, which drafters use; the drafter's `fc`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dflash_core.errors import CheckpointMismatch
from dflash_core.models.checkpoints import TargetConfig
from dflash_core.models.cpu_linear import CpuLinear
from dflash_core.models.drafter_files import CONTEXT_PROJECTION_NAMES
from dflash_core.models.load_progress import Advance
from dflash_core.models.tensor_files import read_tensors, tensor_files


@dataclass(frozen=True, slots=True)
class SharedNames:
    """What a target's checkpoint calls its embedding and head."""

    embedding: str
    head: str | None  # None: tied to the embedding
    head_bias: str | None

    @classmethod
    def find(cls, folder: Path, config: TargetConfig) -> SharedNames:
        """Raises `CheckpointNotFound`, or `CheckpointMismatch` where there is no embedding."""
        names = tensor_files(folder).keys()
        embedding, head = _ending(names, "embed_tokens.weight"), _ending(names, "lm_head.weight")
        if embedding is None:
            raise CheckpointMismatch(f"the target in {folder} has no tensor embed_tokens.weight")
        return cls(embedding, None if config.ties_embeddings else head, _ending(names, "lm_head.bias"))

    def all(self) -> list[str]:
        return [name for name in (self.embedding, self.head, self.head_bias) if name is not None]


@dataclass(frozen=True, slots=True)
class EmbeddingAndHead:
    """A target's embedding and head without the layers between."""

    embedding: Tensor  # [vocab_size, hidden]
    head: Tensor  # [vocab_size, hidden]; the same tensor as `embedding` where tied
    head_bias: Tensor | None  # [vocab_size]
    embedding_scale: Tensor | None  # scalar in the embedding's dtype, as the target itself rounds it
    logit_softcap: float | None
    cpu_head: CpuLinear | None = None  # the head again, where it is faster

    @classmethod
    def load(
        cls,
        folder: Path,
        config: TargetConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        advance: Advance | None = None,
    ) -> EmbeddingAndHead:
        """Reads only these tensors from the shards, straight to `device`. `advance` as in `read_tensors`.

        Raises `CheckpointNotFound`, `CheckpointMismatch`.
        """
        names = SharedNames.find(folder, config)
        tensors = read_tensors(folder, names.all(), device, dtype, advance)
        shape = [config.vocab_size, config.hidden_size]
        for name, tensor in tensors.items():
            if list(tensor.shape) != shape[: tensor.dim()]:
                raise CheckpointMismatch(
                    f"the target's {name} has shape {list(tensor.shape)}, its config says {shape[: tensor.dim()]}"
                )
        embedding = tensors[names.embedding]
        head = embedding if names.head is None else tensors[names.head]
        return cls(
            embedding=embedding,
            head=head,
            head_bias=None if names.head_bias is None else tensors[names.head_bias],
            embedding_scale=None if config.embedding_scale == 1.0 else embedding.new_tensor(config.embedding_scale),
            logit_softcap=config.logit_softcap,
        )

    def packed_for_cpu(self) -> EmbeddingAndHead:
        """With a head that is faster on the CPU in fp32, where this one is there; else as it is."""
        is_plain = self.head.device.type == "cpu" and self.head.dtype == torch.float32 and self.head_bias is None
        return replace(self, cpu_head=CpuLinear(self.head)) if is_plain else self

    def embed(self, token_ids: Tensor) -> Tensor:
        """`[...]` int64 to `[..., hidden]`."""
        embedded = F.embedding(token_ids, self.embedding)
        return embedded if self.embedding_scale is None else embedded * self.embedding_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., vocab_size]`."""
        linear = self.cpu_head
        logits: Tensor = F.linear(hidden, self.head, self.head_bias) if linear is None else linear(hidden)
        return logits if self.logit_softcap is None else torch.tanh(logits / self.logit_softcap) * self.logit_softcap


def fc_fingerprint(drafter_folder: Path) -> str:
    """16 hex digits of the drafter's `fc` and `hidden_norm` as stored: features made by one fit no other."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(read_tensors(drafter_folder, CONTEXT_PROJECTION_NAMES).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _ending(names: Iterable[str], suffix: str) -> str | None:
    """The one tensor with that name, whatever it is nested in (multimodal checkpoints nest the language model)."""
    return next((name for name in sorted(names) if name == suffix or name.endswith("." + suffix)), None)
