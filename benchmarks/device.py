"""The device that a benchmark runs on."""

from __future__ import annotations

import gc

import torch


def synchronize(device: torch.device) -> None:
    """Waits until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Gives what nobody holds back to the device."""
    gc.collect()  # hooks and models refer to one another
    if device.type == "cuda":
        torch.cuda.empty_cache()
