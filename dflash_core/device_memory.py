"""How much memory is free where a model goes."""

from __future__ import annotations

import torch

from dflash_core.errors import InvalidSettings
from dflash_core.units import bytes_text


def free_bytes(device: torch.device) -> int | None:
    """What is free on a GPU, what torch holds there without using it included; None for a CPU, whose memory others
    take and give back all the time."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def check_weights_fit(what: str, num_bytes: int, device: torch.device) -> None:
    """Raises `InvalidSettings`, before anything is read, where the weights of `what` are more than is free."""
    free = free_bytes(device)
    if free is not None and num_bytes > free:
        raise InvalidSettings(
            f"{what} has {bytes_text(num_bytes)} of weights, but {bytes_text(free)} are free on {device}: free memory "
            "there, or serve a smaller model or dtype"
        )
