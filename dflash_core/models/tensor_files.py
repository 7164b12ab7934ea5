"""Reading tensors by name from a checkpoint's safetensors files, one shard at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from dflash_core.errors import CheckpointMismatch, CheckpointNotFound

if TYPE_CHECKING:
    import torch
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
    with _open(single) as file:
        return dict.fromkeys(file.keys(), single)


def tensor_sizes(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """How many elements each of those tensors has, from the headers alone. Raises as `read_tensors`."""
    sizes: dict[str, int] = {}
    for path, in_file in _by_file(folder, names).items():
        with _open(path) as file:
            sizes |= {name: prod(file.get_slice(name).get_shape()) for name in in_file}
    return sizes


def read_tensors(
    folder: Path,
    names: Iterable[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Those tensors alone, each straight from its file to `device`.

    Args:
        dtype: what they are converted to, one after the other on the device; None: as they are stored.
        advance: called with the bytes of each tensor that has arrived.

    Raises `CheckpointNotFound` for a missing file, `CheckpointMismatch` for a missing tensor or an unreadable file.
    """
    tensors: dict[str, Tensor] = {}
    for path, in_file in _by_file(folder, names).items():
        with _open(path, device) as file:
            for name in in_file:
                tensor = file.get_tensor(name)
                tensors[name] = tensor if dtype is None else tensor.to(dtype)
                if advance is not None:
                    advance(tensors[name].nbytes)
    return tensors


def _by_file(folder: Path, names: Iterable[str]) -> dict[Path, list[str]]:
    """Which of the tensors each file holds, file after file."""
    files = tensor_files(folder)
    names = list(names)
    if missing := sorted(set(names) - set(files)):
        raise CheckpointMismatch(f"{folder} has no tensor {', '.join(missing)}")
    return {path: [name for name in names if files[name] == path] for path in sorted({files[name] for name in names})}


@contextmanager
def _open(path: Path, device: torch.device | str = "cpu") -> Iterator[Any]:
    """A file whose tensors arrive on `device`."""
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        raise CheckpointMismatch(f"{path} cannot be read: {error}") from error
