"""A target over two ranks, which are processes, against the same target in one."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import PreTrainedConfig, Qwen3Config
from transformers.models.auto import AutoModelForCausalLM

from dflash_core.contracts import SequenceKey, TreeRows
from dflash_core.errors import RanksLost, UnsupportedModel
from dflash_core.parallel.group import WorkerSpec
from dflash_core.parallel.processes import ProcessLauncher, ProcessWorkers
from dflash_core.parallel.steps import tell_prepare
from dflash_core.raw_tensor import from_raw
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.target import TargetRunner
from tests.core.target_configs import CONFIGS, SIZES
from tests.core.target_models import SAMPLINGS, decode_plainly, ok, prefill_of, random_prompt, random_tree, run
from tests.tiny import make_tiny_pair

SETTINGS = TargetSettings(device="cpu", kv_block_size=4, num_blocks=256, max_rows=128, max_tree_rows=64)
EMBEDDED = ("embedded:stdlib-6m", "embedded:stdlib-6m-dflash")


@contextmanager
def loaded(target: str, drafter: str | None = None, **settings: Any) -> Iterator[TargetRunner]:
    runner = TargetRunner.load(target, drafter, SETTINGS.model_copy(update=settings))
    try:
        yield runner
    finally:
        runner.close()


def saved(config: PreTrainedConfig, folder: Path) -> str:
    """A random model, in a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.2)
    model.save_pretrained(folder)
    return str(folder)


def outputs(runner: TargetRunner) -> list[list[int]]:
    """Tokens of every kind of sampling, from plain decoding and from trees that are now and then right."""
    found = []
    for name, sampling in SAMPLINGS.items():
        prompt = random_prompt(len(name), 11)
        plain = decode_plainly(runner, prompt, 16, sampling)
        found += [plain, decode_by_trees(runner, prompt, 16, plain, name)]
    return found


def decode_by_trees(
    runner: TargetRunner, prompt: np.ndarray, num_tokens: int, right: list[int], sampling: str
) -> list[int]:
    key, rng = SequenceKey("trees", 0), np.random.default_rng(5)
    outcome = ok(run(runner, prefills=(prefill_of(key, prompt, sampling=SAMPLINGS[sampling]),)).result.outcomes[0])
    tokens = [outcome.bonus_token]
    while len(tokens) < num_tokens:
        tree = random_tree(rng, tokens[-1], right[len(tokens) :], 9, 3)
        outcome = ok(run(runner, trees=(TreeRows(key, outcome.cached_len, tree),)).result.outcomes[0])
        tokens += [*outcome.token_ids.tolist(), outcome.bonus_token]
    run(runner, releases=(key,))
    return tokens[:num_tokens]


def features_of(runner: TargetRunner) -> torch.Tensor:
    """Of a prompt of two chunks."""
    key, prompt = SequenceKey("features", 0), random_prompt(3, 40)
    chunks = []
    for start, end in ((0, 24), (24, 40)):
        prefill = prefill_of(key, prompt, start, end, drafter_address="drafter")
        chunks += run(runner, prefills=(prefill,)).context["drafter"]
    run(runner, releases=(key,))
    return torch.cat([from_raw(chunk.features) for chunk in chunks])


def check_same(target: str, drafter: str | None = None) -> None:
    with loaded(target, drafter) as one:
        expected, features = outputs(one), None if drafter is None else features_of(one)
        info = one.info
    with loaded(target, drafter, tensor_parallel=2) as two:
        assert outputs(two) == expected
        assert outputs(two) == expected, "prefixes that are cached give other tokens"
        if features is not None:
            torch.testing.assert_close(features_of(two), features, atol=1e-4, rtol=1e-4)
        assert two.free_blocks == info.num_blocks
        assert two.info.vocab_size == info.vocab_size


def test_one_kv_head_for_two_ranks_and_an_odd_vocabulary(tmp_path: Path) -> None:
    """The drafter's features come from rank 0 alone."""
    pair = make_tiny_pair(tmp_path, num_kv_heads=1, vocab_size=301)
    check_same(str(pair.target), str(pair.drafter))


@pytest.mark.slow
def test_the_embedded_pair() -> None:
    check_same(*EMBEDDED)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3", "cohere2"])
def test_families(family: str, tmp_path: Path) -> None:
    """Plain layers, experts, scaled embeddings with norms around everything, a head tied to the embedding."""
    check_same(saved(CONFIGS[family], tmp_path))


def test_a_rank_that_ends_within_a_round(tmp_path: Path) -> None:
    """The round fails at once, and says which rank is gone."""
    with loaded(saved(CONFIGS["qwen3"], tmp_path), tensor_parallel=2) as runner:
        runner.check_ranks()
        os.kill(runner.rank_pids[0], signal.SIGKILL)
        with pytest.raises(RanksLost, match=r"lost rank 1, which ended with exit code -9"):
            decode_plainly(runner, random_prompt(1, 8), 4)
        with pytest.raises(RanksLost, match="lost rank 1"):
            runner.check_ranks()


@pytest.mark.slow
def test_a_rank_that_does_not_answer(tmp_path: Path) -> None:
    """The round fails after `collective_timeout_s`, and no later one runs: the rank may wake up a step behind."""
    target = saved(CONFIGS["qwen3"], tmp_path)
    with loaded(target, tensor_parallel=2, collective_timeout_s=15.0) as runner:
        (pid,) = runner.rank_pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RanksLost, match="out of step"):
            run(runner, prefills=(prefill_of(SequenceKey("late", 0), random_prompt(1, 8)),))
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(RanksLost, match="out of step"):
            run(runner, prefills=(prefill_of(SequenceKey("later", 0), random_prompt(1, 8)),))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_rank_that_does_not_listen(tmp_path: Path) -> None:
    """What is broadcast to it is given up after `collective_timeout_s`, too."""
    target = saved(CONFIGS["qwen3"], tmp_path)
    with loaded(target, tensor_parallel=2, collective_timeout_s=15.0) as runner:
        assert runner._group is not None
        os.kill(runner.rank_pids[0], signal.SIGSTOP)
        with pytest.raises(RuntimeError, match="(?i)time"):
            for _ in range(1000):  # the first ones may be taken by buffers
                tell_prepare(runner._group.ranks)


@pytest.mark.slow
def test_ranks_end_with_rank_0(tmp_path: Path) -> None:
    """However it ends."""
    code = (
        "import sys, time\n"
        "from dflash_core.runners.settings import TargetSettings\n"
        "from dflash_core.runners.target import TargetRunner\n"
        "settings = TargetSettings.model_validate_json(sys.argv[2])\n"
        "runner = TargetRunner.load(sys.argv[1], None, settings)\n"
        "print(*runner.rank_pids, flush=True)\n"
        "time.sleep(600)\n"
    )
    settings = SETTINGS.model_copy(update={"tensor_parallel": 2})
    command = [sys.executable, "-c", code, saved(CONFIGS["qwen3"], tmp_path), settings.model_dump_json()]
    with subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        rank = psutil.Process(int(leader.stdout.readline()))
        leader.kill()
    rank.wait(timeout=60)


def test_a_rank_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own reason reaches rank 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    class BrokenLauncher(ProcessLauncher):
        def launch(self, specs: list[WorkerSpec]) -> ProcessWorkers:  # type: ignore[override]
            broken = WorkerSpec(str(tmp_path / "nowhere"), specs[0].settings, specs[0].rendezvous)
            return super().launch([broken])

    with pytest.raises(RanksLost, match=r"lost rank 1.*nowhere: the folder does not exist"):
        TargetRunner.load(
            saved(CONFIGS["qwen3"], tmp_path / "model"),
            None,
            SETTINGS.model_copy(update={"tensor_parallel": 2}),
            BrokenLauncher(),
        )


@pytest.mark.parametrize(
    ("config", "tp_size", "reason"),
    [
        (CONFIGS["qwen3"], 3, "4 attention heads are not divisible by 3"),
        (Qwen3Config(**SIZES | {"num_attention_heads": 6, "num_key_value_heads": 3}), 2, "3 KV heads and 2 ranks"),
        (CONFIGS["phi3"], 2, "qkv_proj as colwise_gather_output"),
        (CONFIGS["olmo2"], 2, "q_proj as colwise_gather_output"),
        (Qwen3Config(**SIZES | {"intermediate_size": 51}), 2, "intermediate_size 51 is not divisible by 2"),
        (Qwen3Config(**SIZES | {"vocab_size": 5}), 4, "a vocabulary of 5 leaves a rank without an id"),
    ],
    ids=["heads", "kv-heads", "fused", "whole-norms", "mlp", "vocabulary"],
)
def test_a_model_that_cannot_be_split(config: PreTrainedConfig, tp_size: int, reason: str, tmp_path: Path) -> None:
    """Before a process is started or a weight is read: the folder has none."""
    copy.deepcopy(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=rf"cannot be split over {tp_size} ranks: .*{reason}"):
        TargetRunner.load(str(tmp_path), None, SETTINGS.model_copy(update={"tensor_parallel": tp_size}))
