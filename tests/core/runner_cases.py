"""A target and a drafter whose rounds stay on the device; collected like `attention_cases.py`.

In the interpreter the device is the CPU: padded sizes, the walk and the commit are the same, without CUDA graphs.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.utils import run_and_get_code

from dflash_core.attention.split_kv.launch import is_interpreted
from dflash_core.contracts import (
    ContextChunk,
    DraftBlock,
    DraftRanking,
    DraftTree,
    SamplingParams,
    SequenceKey,
    TreeRows,
)
from dflash_core.models.drafter_config import LayerAttention
from dflash_core.raw_tensor import to_raw
from dflash_core.runners.captured import padded_count, padded_counts
from dflash_core.runners.device_pass import DevicePass
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings
from tests.core.target_models import (
    SAMPLINGS,
    decode_plainly,
    dense_features,
    generate,
    make_subject,
    ok,
    positions_and_features,
    prefill_of,
    random_prompt,
    random_tree,
    run,
)
from tests.core.test_target_caches import KEY, cached_kv, decode_with_trees, dense_kv
from tests.tiny import make_tiny_pair

INTERPRETED = {"attention": "triton", "compile": False}
ON_DEVICE = INTERPRETED if is_interpreted() else {"attention": "triton"}


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cpu" if is_interpreted() else "cuda")


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3", "qwen3_moe"])
def test_a_target_gives_the_tokens_of_generate(name: str, device: torch.device) -> None:
    """Two prompts, one of them in chunks beside the other's trees."""
    subject = make_subject(name, device, **ON_DEVICE)
    assert isinstance(subject.runner._pass, DevicePass)
    keys, rng = [SequenceKey("a", 0), SequenceKey("b", 0)], np.random.default_rng(3)
    prompts = [random_prompt(1, 23), random_prompt(2, 17)]
    expected = [generate(subject.twin, prompt, 10) for prompt in prompts]

    first = ok(run(subject.runner, prefills=(prefill_of(keys[0], prompts[0]),)).result.outcomes[0])
    done: list[list[int]] = [[first.bonus_token], []]
    for start, end in ((0, 11), (11, 17), (17, 17)):
        trees = [
            TreeRows(key, len(prompt) + len(tokens) - 1, random_tree(rng, tokens[-1], right[len(tokens) :], 9, 2))
            for key, prompt, tokens, right in zip(keys, prompts, done, expected, strict=True)
            if tokens
        ]
        prefills = (prefill_of(keys[1], prompts[1], start, end),) if start < end else ()
        for outcome in run(subject.runner, prefills=prefills, trees=tuple(trees)).result.outcomes:
            ok(outcome)
            if outcome.bonus_token >= 0:
                done[keys.index(outcome.key)] += [*outcome.token_ids.tolist(), outcome.bonus_token]
    assert [len(tokens) >= count for tokens, count in zip(done, (4, 2), strict=True)] == [True, True]
    assert done == [right[: len(tokens)] for tokens, right in zip(done, expected, strict=True)]


@pytest.mark.parametrize("sampling", ["warm", "hot"])
def test_sampled_tokens_are_those_of_the_cpu(sampling: str, device: torch.device) -> None:
    on_cpu, on_device = make_subject("qwen3"), make_subject("qwen3", device, **ON_DEVICE)
    prompt = random_prompt(3, 11)
    expected = decode_plainly(on_cpu.runner, prompt, 12, SAMPLINGS[sampling])
    chain = DraftTree(np.array(expected[:7], np.int32), np.arange(7, dtype=np.int32))
    ok(run(on_device.runner, prefills=(prefill_of(KEY, prompt, sampling=SAMPLINGS[sampling]),)).result.outcomes[0])
    outcome = ok(run(on_device.runner, trees=(TreeRows(KEY, len(prompt), chain),)).result.outcomes[0])
    assert [*outcome.token_ids.tolist(), outcome.bonus_token] == expected[1:8]


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_pages_and_features_are_those_of_a_dense_run(name: str, device: torch.device) -> None:
    subject, prompt = make_subject(name, device, **ON_DEVICE), random_prompt(0, 15)
    expected = decode_plainly(make_subject(name).runner, prompt, 17, SAMPLINGS["hot"])
    tokens, chunks = decode_with_trees(subject, prompt, 5, "d", expected)
    committed = [*prompt.tolist(), *tokens[:-1]]
    torch.testing.assert_close(cached_kv(subject, KEY).cpu(), dense_kv(subject, committed), rtol=1e-4, atol=1e-5)
    positions, features = positions_and_features(chunks)
    assert positions == list(range(len(committed)))
    subject.projection.cpu()
    torch.testing.assert_close(features, dense_features(subject, committed), rtol=1e-4, atol=1e-5)


def test_a_path_that_outgrows_the_blocks_is_cut_and_loses_nothing(device: torch.device) -> None:
    subject = make_subject("qwen3", device, num_blocks=6, kv_block_size=4, max_model_len=20, **ON_DEVICE)
    runner, prompt = subject.runner, random_prompt(5, 8)
    expected = generate(subject.twin, prompt, 8)
    filler, key = SequenceKey("filler", 0), SequenceKey("s", 0)
    run(runner, prefills=(prefill_of(filler, random_prompt(6, 12)), prefill_of(key, prompt)))
    assert runner.free_blocks == 1
    chain = DraftTree(np.array(expected[:8], np.int32), np.arange(8, dtype=np.int32))
    outcome = ok(run(runner, trees=(TreeRows(key, 8, chain),)).result.outcomes[0])
    assert [*outcome.token_ids.tolist(), outcome.bonus_token] == expected[1:5]
    assert (outcome.cached_len, runner.free_blocks) == (12, 0)


def test_rounds_beyond_the_graphs_give_the_same(device: torch.device) -> None:
    """Larger rounds have logits for their choices alone."""
    subject = make_subject("qwen3", device, max_graph_rows=8, **ON_DEVICE)
    prompts = {SequenceKey(f"s{i}", 0): random_prompt(i, 5 + 6 * i) for i in range(3)}
    outcomes = run(subject.runner, prefills=tuple(prefill_of(k, p) for k, p in prompts.items())).result.outcomes
    assert [ok(o).bonus_token for o in outcomes] == [generate(subject.twin, p, 1)[0] for p in prompts.values()]


def test_a_target_times_its_padded_sizes(device: torch.device) -> None:
    runner = make_subject("qwen3", device, max_rows=24, max_tree_rows=16, **ON_DEVICE).runner
    runner.time_itself()
    assert runner.info.row_sizes == (8, 16, 24)
    rows = tuple(count for count, _ in runner.info.round_times_us)
    assert rows == (8, 16)[: len(rows)]
    assert rows
    assert (runner.num_sequences, runner.free_blocks) == (0, 64)


def test_logits_that_are_not_numbers_are_said_to_be(device: torch.device) -> None:
    subject = make_subject("qwen3", device, **ON_DEVICE)
    subject.runner._model.model.lm_head.weight.data[3] = float("nan")
    outcome = run(subject.runner, prefills=(prefill_of(KEY, random_prompt(0, 5)),)).result.outcomes[0]
    assert (outcome.status.value, outcome.bonus_token) == ("invalid", -1)
    assert "position 5 are not numbers" in outcome.message


@pytest.mark.slow
def test_a_compiled_forward_gives_the_same_and_never_copies_the_pool(device: torch.device) -> None:
    """A compiler that does not trust an operator to change a tensor in place copies it first: all pages, each layer."""
    subject = make_subject("qwen3", device, max_graph_rows=32, **ON_DEVICE | {"compile": True})
    prompts = [random_prompt(2, length) for length in (9, 5, 27, 66)]
    tokens, codes = run_and_get_code(lambda: [decode_plainly(subject.runner, prompt, 2) for prompt in prompts])
    assert tokens == [generate(subject.twin, prompt, 2) for prompt in prompts]
    assert len(codes) == 1, "rounds of all sizes share one compilation"
    calls = re.findall(r"dflash\.attend_and_store\.default\(([^)]*\), [^)]*)\)", codes[0])
    assert len(calls) == 3
    pools = {tuple(re.findall(r"\b(arg\d+_1|buf\d+)\b", call.partition("), ")[2])[:2]) for call in calls}
    assert len(pools) == 1, pools
    assert all(name.startswith("arg") for name in next(iter(pools))), pools


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_drafter_drafts_as_on_the_cpu(compiled: bool, device: torch.device, tmp_path: Path) -> None:
    """Causal windowed and bidirectional layers; chunks of two sequences in one call; more blocks than a pass takes,
    ranked with and without noise."""
    layers = (LayerAttention(7, True), LayerAttention(None, False))
    pair = make_tiny_pair(tmp_path, draft_layers=layers, drafter_noise=1.0)
    features = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    sizes = {"dtype": "float32", "kv_block_size": 4, "num_blocks": 32, "num_candidates": 16, "max_batch_blocks": 3}
    a, b, sampled = SequenceKey("a", 0), SequenceKey("b", 3), SamplingParams(temperature=0.8, seed=2**63 + 5, top_k=9)
    blocks = [
        DraftBlock(a, 9, 21, SamplingParams()),
        DraftBlock(b, 9, 6, sampled),
        DraftBlock(a, 9, 13, sampled, DraftRanking(truncation_penalty=5.0)),
        DraftBlock(b, 70, 0, SamplingParams()),
        DraftBlock(a, 9, 21, sampled, DraftRanking(uses_noise=False)),
    ]
    drafts = []
    for settings in ({"device": "cpu"}, {"device": device.type, **ON_DEVICE, "compile": compiled}):
        runner = DrafterRunner.load(
            str(pair.drafter), str(pair.target), DrafterSettings.model_validate(sizes | settings)
        )
        runner.open(a, 0)
        runner.open(b, 0)
        parts = [(a, 0, 5), (b, 0, 6), (a, 3, 21), (b, 2, 4)]  # with overlaps
        acks = runner.append_context([ContextChunk(k, i, to_raw(features[i:j])) for k, i, j in parts])
        assert [ack.context_len for ack in acks] == [5, 6, 21, 6]
        drafts.append(runner.draft(blocks))
    for on_cpu, on_device in zip(*drafts, strict=True):
        assert (on_cpu.key, on_cpu.error, on_device.error) == (on_device.key, None, None)
        np.testing.assert_array_equal(on_cpu.token_ids, on_device.token_ids)
        np.testing.assert_allclose(on_cpu.scores, on_device.scores, atol=1e-4)


def test_padded_sizes_hold_their_rows_and_waste_little() -> None:
    for count in range(1, 3000):
        padded = padded_count(count)
        assert count <= padded <= max(count + 7, 1.25 * count)
    assert padded_counts(70) == [80, 64, 56, 48, 40, 32, 24, 16, 8]
