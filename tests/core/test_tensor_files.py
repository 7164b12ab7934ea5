"""Reading tensors: only the wanted ones, each from its own shard, straight to a device. What a GPU alone could show,
that no host memory is taken meanwhile, is left to safetensors: here it is asked for the right device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dflash_core.errors import CheckpointMismatch, CheckpointNotFound
from dflash_core.models.checkpoints import TargetConfig
from dflash_core.models.shared_tensors import EmbeddingAndHead
from dflash_core.models.tensor_files import read_tensors, tensor_sizes
from dflash_core.runners.drafter_loading import load_drafter_parts
from tests.tiny import make_tiny_pair

SHARDS = {
    "model-1.safetensors": {"a": torch.arange(6.0).view(2, 3), "b": torch.full((4,), 1 / 3, dtype=torch.float64)},
    "model-2.safetensors": {"c": torch.ones(5, dtype=torch.bfloat16)},
    "model-3.safetensors": {"d": torch.zeros(7)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tensors in SHARDS.items():
        save_file(tensors, tmp_path / name)
    weight_map = {tensor: name for name, tensors in SHARDS.items() for tensor in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


class Reads:
    """What was asked of safetensors. A device that is not here counts as one: its tensors come to the CPU."""

    def __init__(self) -> None:
        self.devices: dict[str, str] = {}  # of the files from which tensors were read
        self.names: list[str] = []

    @contextmanager
    def open(self, path: str, framework: str, device: str) -> Iterator[Any]:
        with safe_open(path, framework=framework) as file:
            reads = self

            class Recorded:
                keys = file.keys
                get_slice = file.get_slice

                def get_tensor(self, name: str) -> Tensor:
                    reads.devices[Path(path).name] = device
                    reads.names.append(name)
                    return file.get_tensor(name)

            yield Recorded()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    reads = Reads()
    monkeypatch.setattr("dflash_core.models.tensor_files.safe_open", reads.open)
    return reads


def test_only_wanted_tensors_are_read_from_their_shards(folder: Path, reads: Reads) -> None:
    arrived: list[int] = []
    tensors = read_tensors(folder, ["c", "a"], "cuda", advance=arrived.append)
    assert reads.names == ["a", "c"]  # file after file
    assert reads.devices == {"model-1.safetensors": "cuda", "model-2.safetensors": "cuda"}
    assert torch.equal(tensors["a"], SHARDS["model-1.safetensors"]["a"])
    assert (tensors["c"].dtype, arrived) == (torch.bfloat16, [24, 10])


def test_tensors_are_converted_one_by_one(folder: Path) -> None:
    arrived: list[int] = []
    tensors = read_tensors(folder, ["b", "c"], dtype=torch.float32, advance=arrived.append)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    torch.testing.assert_close(tensors["b"], torch.full((4,), 1 / 3), rtol=0, atol=0)
    assert arrived == [16, 20]


def test_sizes_come_from_the_headers(folder: Path, reads: Reads) -> None:
    assert tensor_sizes(folder, ["b", "a"]) == {"a": 6, "b": 4}
    assert reads.names == []


def test_missing_shards_and_tensors_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="has no tensor x, y"):
        read_tensors(folder, ["y", "a", "x"])
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match=r"index\.json names files that are not there: .*model-2\.safetensors"):
        read_tensors(folder, ["c"])


def test_a_file_cut_short_is_named(folder: Path) -> None:
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointMismatch, match=r"model-1\.safetensors cannot be read"):
        read_tensors(folder, ["a"])


def test_a_drafter_reads_no_layer_of_its_target(tmp_path: Path, reads: Reads) -> None:
    pair = make_tiny_pair(tmp_path)
    config = TargetConfig.load(pair.target)
    EmbeddingAndHead.load(pair.target, config)
    assert reads.names == ["model.embed_tokens.weight", "lm_head.weight"]
    parts = load_drafter_parts("d", pair.drafter, pair.target, config, torch.float32, torch.device("cpu"))
    of_target = [name for name in reads.names if name.startswith(("model.", "lm_head."))]
    assert of_target == ["model.embed_tokens.weight", "lm_head.weight"] * 2
    assert {parameter.dtype for parameter in parts.model.parameters()} == {torch.float32}
