"""Which device and dtype a runner's settings mean on this machine."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dflash_core.errors import DeviceLost, InvalidSettings
from dflash_core.runners.settings import DeviceName, DtypeName

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: DeviceName, index: int = 0) -> torch.device:
    """`index`: of the GPU, where it is one. Raises `InvalidSettings` for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise InvalidSettings("device is cuda, but torch sees no GPU")
    if not has_gpu or name == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if index == 0 else torch.device("cuda", index)


def pick_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]


@contextmanager
def named_device_errors(owner: str) -> Iterator[None]:
    """Raises `DeviceLost` for an error that a GPU does not recover from: an illegal access, a failed assertion, broken
    memory. Too little memory is none of them."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(f"{owner} has lost its GPU: {error}") from error


def set_up_process(num_threads: int) -> None:
    """Sets torch's threads, and products that are as exact as their dtype, for the whole process."""
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("highest")  # fp32 means fp32: tokens must not depend on the batch
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def release_memory() -> None:
    """Gives back what runners that nobody refers to any more held: the caches of the next one take their size from what
    is free on the device."""
    gc.unfreeze()  # Ray Serve freezes all that a replica holds when it is ready, its runner too
    gc.collect()
    torch.cuda.empty_cache()  # nothing without a GPU
