"""A target over two ranks whose rounds stay on the device, as it is in the interpreter; collected like
`attention_cases.py`, but not on a GPU, where two ranks need two."""

from __future__ import annotations

from pathlib import Path

import pytest

from dflash_core.contracts import SamplingParams
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.target import TargetRunner
from tests.core.target_models import decode_plainly, random_prompt
from tests.tiny import make_tiny_pair

pytestmark = pytest.mark.slow


def test_a_split_target_decodes_as_a_whole_one(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path, num_layers=2, target_layer_ids=(0, 1), max_length=64)
    sampling = SamplingParams(temperature=0.8, top_k=30, top_p=0.9, seed=4)
    found = []
    for tensor_parallel, attention in ((1, "torch"), (2, "triton")):
        settings = TargetSettings(
            device="cpu",
            attention=attention,
            compile=False,
            num_blocks=16,
            max_rows=16,
            max_tree_rows=8,
            tensor_parallel=tensor_parallel,
        )
        runner = TargetRunner.load(str(pair.target), str(pair.drafter), settings)
        try:
            found.append([decode_plainly(runner, random_prompt(2, 6), 5, kind) for kind in (None, sampling)])
        finally:
            runner.close()
    assert found[0] == found[1]
