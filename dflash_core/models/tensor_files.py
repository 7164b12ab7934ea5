"""Reading tensors by name from a checkpoint's safetensors files, one shard at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from dflash_core.errors import CheckpointMismatch, CheckpointNotFound

if TYPE_CHECKING:
    from torch import Tensor


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor of the checkpoint in `folder`. Raises `CheckpointNotFound`."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file():
        files = {name: folder / shard for name, shard in json.loads(index.read_text())["weight_map"].items()}
        if missing := sorted({str(path) for path in files.values() if not path.is_file()}):
            raise CheckpointNotFound(f"{index} names files that are not there: {', '.join(missing)}")
        return files
    if not single.is_file():
        raise CheckpointNotFound(f"no weights in {folder}: neither {single.name} nor {index.name}")
    with safe_open(str(single), framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Those tensors, on the CPU, in the dtype they are stored in.

    Raises `CheckpointNotFound` for a missing file, `CheckpointMismatch` for a missing tensor.
    """
    files = tensor_files(folder)
    names = list(names)
    if missing := sorted(set(names) - set(files)):
        raise CheckpointMismatch(f"{folder} has no tensor {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    for path in sorted({files[name] for name in names}):
        with safe_open(str(path), framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in names if files[name] == path}
    return tensors
