"""What computes attention: torch's own operators, or our Triton kernels."""

from __future__ import annotations

from enum import StrEnum

import torch


class AttentionBackend(StrEnum):
    AUTO = "auto"  # Triton on a GPU, torch elsewhere
    TORCH = "torch"
    TRITON = "triton"


def picks_triton(backend: AttentionBackend, device: torch.device) -> bool:
    return backend is AttentionBackend.TRITON or (backend is AttentionBackend.AUTO and device.type == "cuda")
