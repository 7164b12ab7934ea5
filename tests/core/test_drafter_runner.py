"""The drafter runner: whose context it holds, and that a draft depends on nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dflash_core.contracts import (
    ContextChunk,
    ContextStatus,
    Draft,
    DraftBlock,
    DraftRanking,
    RawTensor,
    SamplingParams,
    SequenceKey,
)
from dflash_core.errors import CheckpointMismatch, ProtocolError
from dflash_core.models.drafter_config import LayerAttention
from dflash_core.models.shared_tensors import fc_fingerprint
from dflash_core.raw_tensor import to_raw
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DrafterSettings
from dflash_core.sampling.noise import gumbel
from tests.tiny import TinyPair, make_tiny_pair

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, seed=2**63 + 5)
A, B = SequenceKey("a", 0), SequenceKey("b", 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    layers = (LayerAttention(7, True), LayerAttention(None, False))
    return make_tiny_pair(tmp_path_factory.mktemp("pair"), draft_layers=layers, drafter_noise=1.0)


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(40, 32, generator=torch.Generator().manual_seed(1))


def runner_of(pair: TinyPair, **settings: object) -> DrafterRunner:
    defaults = {"dtype": "float32", "kv_block_size": 4, "num_blocks": 32, "num_candidates": 16}
    return DrafterRunner.load(str(pair.drafter), str(pair.target), DrafterSettings.model_validate(defaults | settings))


def filled(pair: TinyPair, features: Tensor, **settings: object) -> DrafterRunner:
    """A runner that holds 21 features of A and 6 of B."""
    runner = runner_of(pair, **settings)
    for key, length in ((A, 21), (B, 6)):
        runner.open(key, 0)
        assert append(runner, key, 0, features[:length]) == (ContextStatus.OK, length)
    return runner


def append(runner: DrafterRunner, key: SequenceKey, start: int, features: Tensor) -> tuple[ContextStatus, int]:
    (ack,) = runner.append_context([ContextChunk(key, start, to_raw(features))])
    assert ack.key == key
    return ack.status, ack.context_len


def assert_same(left: Draft, right: Draft, tolerance: float = 0.0) -> None:
    assert left.error is None
    assert left.missing_from is None
    np.testing.assert_array_equal(left.token_ids, right.token_ids)
    np.testing.assert_allclose(left.scores, right.scores, atol=tolerance, rtol=0)


def test_what_it_says_of_itself(pair: TinyPair) -> None:
    info = runner_of(pair).info
    assert (info.draft_block_size, info.num_candidates, info.hidden_size) == (5, 16, 32)
    assert (info.vocab_size, info.num_target_layers) == (300, 3)
    assert info.fingerprint == fc_fingerprint(pair.drafter)
    assert runner_of(pair, num_candidates=10_000).info.num_candidates == 300


def test_drafts_have_their_shape_and_order(pair: TinyPair, features: Tensor) -> None:
    (draft,) = filled(pair, features).draft([DraftBlock(A, 9, 21, GREEDY)])
    assert draft.token_ids.shape == draft.scores.shape == (4, 16)
    assert draft.token_ids.dtype == np.int32
    assert draft.scores.dtype == np.float32
    assert (np.diff(draft.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("max_batch_blocks", [1, 2, 64])
def test_a_batch_drafts_as_each_block_alone(pair: TinyPair, features: Tensor, max_batch_blocks: int) -> None:
    runner = filled(pair, features, max_batch_blocks=max_batch_blocks)
    blocks = [
        DraftBlock(A, 9, 21, GREEDY),
        DraftBlock(B, 9, 6, SAMPLED),
        DraftBlock(A, 9, 13, SAMPLED),  # before the end of what is held
        DraftBlock(B, 70, 0, GREEDY),
    ]
    for block, together in zip(blocks, runner.draft(blocks), strict=True):
        assert (together.key, together.context_len) == (block.key, block.context_len)
        assert_same(together, runner.draft([block])[0], tolerance=1e-5)


def test_context_in_pieces_is_context_at_once(pair: TinyPair, features: Tensor) -> None:
    pieces, whole = runner_of(pair), filled(pair, features)
    pieces.open(A, 0)
    for start, end in ((0, 1), (1, 7), (3, 9), (9, 9), (2, 5), (0, 16), (16, 21)):  # with duplicates and overlaps
        status, length = append(pieces, A, start, features[start:end])
        assert status is ContextStatus.OK
        assert length == pieces.context_len(A)
    block = DraftBlock(A, 9, 21, SAMPLED)
    assert_same(pieces.draft([block])[0], whole.draft([block])[0], tolerance=1e-5)


def test_no_draft_sees_its_root_position_or_beyond(pair: TinyPair, features: Tensor) -> None:
    """The context leak: whatever lies at or after the root, of this or another sequence, changes no bit."""
    block = DraftBlock(A, 9, 13, GREEDY)
    held = filled(pair, features).draft([block])[0]
    exact = runner_of(pair)
    exact.open(A, 0)
    append(exact, A, 0, features[:13])
    assert_same(held, exact.draft([block])[0])
    other = runner_of(pair)
    other.open(A, 0)
    append(other, A, 0, torch.cat([features[:13], -3 * features[13:30]]))
    append(other, A, 30, 100 * features[:9])
    assert_same(held, other.draft([block])[0])
    # And one feature before the root changes it.
    leaking = runner_of(pair)
    leaking.open(A, 0)
    append(leaking, A, 0, torch.cat([features[:12], -features[12:13]]))
    assert not np.array_equal(leaking.draft([block])[0].scores, held.scores)


def test_a_draft_changes_no_context(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features)
    block = DraftBlock(A, 9, 21, GREEDY)
    first = runner.draft([block])[0]
    runner.draft([DraftBlock(A, 100, 21, SAMPLED), DraftBlock(B, 100, 6, SAMPLED)])
    assert_same(first, runner.draft([block])[0])


def test_a_new_attempt_truncates(pair: TinyPair, features: Tensor) -> None:
    runner, again = filled(pair, features), A._replace(attempt=2)
    free = runner.free_blocks
    runner.open(again, 9)
    assert runner.context_len(again) == 9
    assert runner.context_len(A) is None
    assert runner.free_blocks == free + 3  # 21 tokens take six blocks of four, 9 take three
    # The old attempt's late features and drafts are dropped.
    assert append(runner, A, 9, features[9:21]) == (ContextStatus.STALE_ATTEMPT, 0)
    (stale,) = runner.draft([DraftBlock(A, 9, 9, GREEDY)])
    assert "higher attempt" in (stale.error or "")
    runner.open(A, 0)
    runner.release(A)
    assert runner.context_len(again) == 9
    # Other tokens follow now: their features count, not the old ones.
    append(runner, again, 9, features[25:30])
    fresh = runner_of(pair)
    fresh.open(again, 0)
    append(fresh, again, 0, torch.cat([features[:9], features[25:30]]))
    block = DraftBlock(again, 9, 14, GREEDY)
    assert_same(runner.draft([block])[0], fresh.draft([block])[0], tolerance=1e-5)


def test_opening_again_or_further_keeps_what_is_held(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features)
    runner.open(A, 0)
    assert runner.context_len(A) == 21
    runner.open(A._replace(attempt=1), 50)
    assert runner.context_len(A._replace(attempt=1)) == 21


def test_gaps_and_strangers_are_told(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features)
    assert append(runner, A, 22, features[22:25]) == (ContextStatus.GAP, 21)
    stranger = SequenceKey("c", 0)
    assert append(runner, stranger, 0, features[:3]) == (ContextStatus.UNKNOWN, 0)
    assert append(runner, A._replace(attempt=1), 21, features[21:25]) == (ContextStatus.UNKNOWN, 0)
    assert runner.context_len(stranger) is None
    assert runner.context_len(A) == 21


def test_a_block_that_cannot_be_drafted_disturbs_no_other(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features)
    good = DraftBlock(A, 9, 21, GREEDY)
    faults = [
        DraftBlock(B, 9, 8, GREEDY),  # two features are missing
        DraftBlock(A, 300, 21, GREEDY),
        DraftBlock(A, -1, 21, GREEDY),
        DraftBlock(SequenceKey("c", 0), 9, 0, GREEDY),
        DraftBlock(A, 9, -1, GREEDY),
    ]
    drafts = runner.draft([faults[0], good, *faults[1:]])
    assert_same(drafts[1], runner.draft([good])[0])
    missing, _, too_large, negative, unknown, before = drafts
    assert (missing.missing_from, missing.error) == (6, None)
    assert too_large.error == "root token 300 is outside the vocabulary of 300"
    assert "-1" in (negative.error or "")
    assert unknown.error == "sequence c: not open on this drafter"
    assert before.error == "context_len -1 is outside the drafter's 512 positions"
    assert all(draft.token_ids.shape == draft.scores.shape == (0, 16) for draft in (missing, too_large, unknown))
    assert not runner.draft([])


def test_out_of_blocks_is_one_sequences_trouble(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features, num_blocks=9)  # A takes six, B two
    assert append(runner, A, 21, features[21:40]) == (ContextStatus.OK, 21)
    assert append(runner, B, 6, features[6:8]) == (ContextStatus.OK, 8)
    refused, fine = runner.draft([DraftBlock(A, 9, 40, GREEDY), DraftBlock(B, 9, 8, GREEDY)])
    assert "4 KV blocks are needed" in (refused.error or "")
    assert fine.error is None
    # What it holds can still be drafted from, and once blocks are free the rest fits.
    assert runner.draft([DraftBlock(A, 9, 21, GREEDY)])[0].error is None
    runner.release(B)
    assert append(runner, A, 21, features[21:32]) == (ContextStatus.OK, 32)
    assert runner.draft([DraftBlock(A, 9, 33, GREEDY)])[0].missing_from == 32


def test_release_frees_everything(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features)
    runner.release(A)
    runner.release(A)
    assert (runner.num_sequences, runner.context_len(A)) == (1, None)
    runner.release_all()
    assert (runner.num_sequences, runner.free_blocks) == (0, 32)


def test_ill_formed_features_are_refused(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features)
    with pytest.raises(ProtocolError, match=r"\[num_tokens, 32\].*\[2, 31\]"):
        append(runner, A, 21, features[21:23, :31])
    with pytest.raises(ProtocolError, match="from -1"):
        append(runner, A, -1, features[:3])
    with pytest.raises(ProtocolError, match="bytes"):
        runner.append_context([ContextChunk(A, 21, RawTensor("float32", (1, 32), b"short"))])
    assert runner.context_len(A) == 21


def test_features_travel_in_any_dtype(pair: TinyPair, features: Tensor) -> None:
    rounded = features[:21].to(torch.bfloat16)
    half, full = runner_of(pair), runner_of(pair)
    for runner, sent in ((half, rounded), (full, rounded.float())):
        runner.open(A, 0)
        append(runner, A, 0, sent)
    block = DraftBlock(A, 9, 21, GREEDY)
    assert_same(half.draft([block])[0], full.draft([block])[0])


def test_slot_i_is_ranked_with_the_noise_of_position_start_plus_i(pair: TinyPair, features: Tensor) -> None:
    """A wrong key would lower acceptance and fail no test of losslessness."""
    runner = filled(pair, features, num_candidates=300, sharpness=0.9)
    (plain,), (noisy,) = (runner.draft([DraftBlock(A, 9, 21, sampling)]) for sampling in (GREEDY, SAMPLED))
    for j in range(4):
        logits = np.empty(300, np.float32)
        logits[plain.token_ids[j]] = plain.scores[j]
        noise = gumbel(SAMPLED.seed, 21 + j + 1, np.arange(300))
        scores = torch.from_numpy((logits + 0.8 * noise) / 0.9).log_softmax(-1).numpy()
        np.testing.assert_allclose(scores[noisy.token_ids[j]], noisy.scores[j], atol=1e-4)


def test_every_block_is_ranked_as_it_asks(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features, num_candidates=300)
    truncated = SamplingParams(temperature=0.8, seed=SAMPLED.seed, top_k=9)
    greedy, noisy, quiet, penalised = runner.draft(
        [
            DraftBlock(A, 9, 21, GREEDY),
            DraftBlock(A, 9, 21, SAMPLED, DraftRanking(uses_noise=True)),
            DraftBlock(A, 9, 21, SAMPLED, DraftRanking(uses_noise=False)),
            DraftBlock(A, 9, 21, truncated, DraftRanking(uses_noise=False, truncation_penalty=50.0)),
        ]
    )
    assert_same(quiet, greedy, tolerance=1e-5)
    assert not np.array_equal(noisy.token_ids, quiet.token_ids)
    np.testing.assert_array_equal(penalised.token_ids, greedy.token_ids)
    assert (penalised.scores[:, 8] - penalised.scores[:, 9] > 50.0).all()
    assert (greedy.scores[:, 8] - greedy.scores[:, 9] < 50.0).all()


def test_a_setting_switches_the_noise_off_for_all_blocks(pair: TinyPair, features: Tensor) -> None:
    runner = filled(pair, features, shared_noise=False)
    greedy, sampled = runner.draft([DraftBlock(A, 9, 21, GREEDY), DraftBlock(A, 9, 21, SAMPLED, DraftRanking())])
    assert_same(sampled, greedy, tolerance=1e-5)


def test_a_pair_that_does_not_belong_together_is_refused(pair: TinyPair, tmp_path: Path) -> None:
    other = make_tiny_pair(tmp_path, num_layers=4)
    with pytest.raises(CheckpointMismatch, match="the drafter says 3, the target has 4"):
        DrafterRunner.load(str(pair.drafter), str(other.target), DrafterSettings())


def test_bfloat16(pair: TinyPair, features: Tensor) -> None:
    (exact,) = filled(pair, features).draft([DraftBlock(A, 9, 21, GREEDY)])
    (rounded,) = filled(pair, features, dtype="bfloat16").draft([DraftBlock(A, 9, 21, GREEDY)])
    assert abs(float(rounded.scores[0, 0] - exact.scores[0, 0])) < 0.5
