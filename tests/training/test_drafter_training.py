"""The drafter's loss against a slow restatement, its context, and the whole pipeline at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from dflash_core.models.drafter import DFlashDrafter
from dflash_core.models.drafter_files import load_drafter
from dflash_core.training import drafter as drafter_training
from dflash_core.training.acceptance import chain_acceptance_length, decoded_acceptance_length, walk
from dflash_core.training.block_loss import BlockLoss, round_weights, target_states
from dflash_core.training.continuations import ContinuationRecipe, Continuations, read_shards, write_shards
from dflash_core.training.corpus import SourceFile, standard_library
from dflash_core.training.drafter import DrafterRecipe, drafter_config, start_from
from dflash_core.training.target import TargetRecipe
from dflash_core.training.target import run as train_target

VOCAB = 50
RECIPE = DrafterRecipe(draft_block_size=4, intermediate_size=64, target_layer_ids=(0, 2))


@pytest.fixture(scope="module")
def block_loss() -> BlockLoss:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    target = Qwen3ForCausalLM(config)
    return BlockLoss(target, DFlashDrafter(drafter_config(target, RECIPE)))


def _tokens(seed: int, length: int = 20) -> torch.Tensor:
    return torch.randint(2, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def _states(block_loss: BlockLoss, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_size = block_loss.drafter.config.hidden_size
    states = target_states(block_loss.target, token_ids, RECIPE.target_layer_ids)
    return states[..., :-hidden_size], states[..., -hidden_size:]


def test_loss_equals_a_loop_over_blocks_and_slots(block_loss: BlockLoss) -> None:
    token_ids, anchors = _tokens(0), torch.tensor([[1, 7, 18], [4, 5, 16]])
    is_greedy = torch.tensor([True, False])
    with torch.no_grad():
        raw_features, final_hidden = _states(block_loss, token_ids)
        target_logs = block_loss.target(input_ids=token_ids).logits.log_softmax(-1)
        total, weight_sum = 0.0, 0.0
        for row in range(2):
            for anchor in anchors[row].tolist():
                # A block alone, with a context that simply ends before its root.
                logs = block_loss.draft_logits(
                    token_ids[row : row + 1, : anchor + 1],
                    torch.tensor([[anchor]]),
                    raw_features[row : row + 1, : anchor + 1],
                )[0, 0].log_softmax(-1)
                losses, divergences = [], []
                for slot in range(1, RECIPE.draft_block_size):
                    position = min(anchor + slot, token_ids.shape[1] - 1)
                    said = target_logs[row, position - 1]
                    losses.append(-logs[slot - 1, token_ids[row, position]])
                    divergences.append(losses[-1])
                    if not is_greedy[row]:
                        losses[-1] = -(said.exp() * logs[slot - 1]).sum()
                        divergences[-1] = (said.exp() * (said - logs[slot - 1])).sum()
                weights = round_weights(torch.stack(divergences))
                for slot, loss in enumerate(losses, start=1):
                    if anchor + slot < token_ids.shape[1]:
                        total += float(weights[slot - 1] * loss)
                        weight_sum += float(weights[slot - 1])
        loss = block_loss(token_ids, anchors, is_greedy, raw_features, final_hidden)
        assert float(loss) == pytest.approx(total / weight_sum, rel=1e-5)


def test_the_loss_with_products_in_bf16_is_nearly_that_in_fp32(block_loss: BlockLoss) -> None:
    token_ids, anchors, is_greedy = _tokens(4), torch.tensor([[1, 7], [4, 5]]), torch.tensor([True, False])
    losses = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):  # as `autocast` on a GPU
            raw_features, final_hidden = _states(block_loss, token_ids)
            losses.append(block_loss(token_ids, anchors, is_greedy, raw_features, final_hidden))
    exact, rounded = losses
    assert rounded.dtype == torch.float32
    assert float(rounded) != float(exact)
    assert float(rounded) == pytest.approx(float(exact), rel=2e-2)


def test_a_slot_weighs_as_often_as_its_round_is_met_and_gets_there() -> None:
    certain, hopeless = torch.zeros(1, 3), torch.full((1, 3), 50.0)
    assert torch.equal(round_weights(certain), torch.full((1, 3), 1 / 4))  # one root in four, every slot reached
    torch.testing.assert_close(round_weights(hopeless), torch.tensor([[1.0, 0.0, 0.0]]))
    # Slot 1 right every other time: 1 + 1/2 + 1/2 + 1/2 tokens, and slots 2 and 3 count √½ of slot 1.
    weights = round_weights(torch.tensor([[float(np.log(2)), 0.0, 0.0]]))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.5**0.5, 0.5**0.5]]) / 2.5)


def test_acceptance_is_that_of_the_rounds_which_decoding_meets(block_loss: BlockLoss) -> None:
    assert walk(torch.tensor([2, 9, 1, 3])) == [2, 1, 3]
    target, width = block_loss.target, RECIPE.draft_block_size
    prompt = _tokens(5, 6)[:1]
    config = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    row = target.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    held_out = Continuations(row.numpy().astype(np.uint16), np.array([6], np.int32), np.array([True]))
    rounds, root = [], 6
    while root <= row.shape[1] - width:
        rounds.append(int(chain_acceptance_length(block_loss, row[:, : root + width], torch.tensor([[root]]))))
        root += rounds[-1]
    assert decoded_acceptance_length(block_loss, held_out) == pytest.approx(np.mean(rounds))


def test_layers_that_a_drafter_starts_from_compute_the_same_in_a_wider_one(block_loss: BlockLoss) -> None:
    target = block_loss.target
    drafter = DFlashDrafter(drafter_config(target, RECIPE))
    layers = target.get_decoder().layers[-2:]
    start_from(drafter, layers, target.get_decoder().norm)
    hidden = torch.randn(3, 32)
    for layer, source in zip(drafter.layers, layers, strict=True):
        assert layer.mlp.gate_proj.weight.shape[0] == 64
        torch.testing.assert_close(layer.mlp(hidden), source.mlp(hidden))


def test_a_block_sees_its_root_and_nothing_after_it(block_loss: BlockLoss) -> None:
    token_ids, anchor = _tokens(1), 9
    changed = token_ids.clone()
    changed[:, anchor + 1 :] = (changed[:, anchor + 1 :] + 7) % VOCAB
    with torch.no_grad():
        before, after = (
            block_loss.draft_logits(tokens, torch.full((2, 1), anchor), _states(block_loss, tokens)[0])
            for tokens in (token_ids, changed)
        )
    assert torch.equal(before, after)


def test_the_feature_of_the_root_itself_is_not_seen(block_loss: BlockLoss) -> None:
    token_ids, anchor = _tokens(2), 9
    with torch.no_grad():
        raw_features, _ = _states(block_loss, token_ids)
        changed = raw_features.clone()
        changed[:, anchor:] += 1.0
        anchors = torch.full((2, 1), anchor)
        assert torch.equal(
            block_loss.draft_logits(token_ids, anchors, raw_features),
            block_loss.draft_logits(token_ids, anchors, changed),
        )


def test_pipeline_from_text_to_checkpoints(tmp_path: Path) -> None:
    files = [file for file in standard_library() if file.name.startswith("json/")]
    text = SourceFile(next(f"held_out_{i}.py" for i in range(999) if _held_out(f"held_out_{i}.py")), files[0].path)
    target_recipe = TargetRecipe(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=16,
        sequence_length=32, long_sequence_length=64, tokens_per_micro_batch=128, micro_batches=1, steps=6,
        compiled=False,
    )  # fmt: skip
    target_folder = train_target(target_recipe, [*files, text], tmp_path)
    tokens = np.load(tmp_path / "train.npy")
    recipe = ContinuationRecipe(num_batches=10, batch_size=2, length=40, shortest_prompt=8, longest_prompt=12)
    write_shards(target_folder, tokens, tmp_path / "continuations", recipe)
    continuations = read_shards(tmp_path / "continuations", recipe.num_batches)
    assert continuations.token_ids.shape == (20, 40)
    assert continuations.is_greedy.mean() == pytest.approx(recipe.greedy_fraction)

    drafter_recipe = DrafterRecipe(
        target_layer_ids=(0, 2), sequences_per_micro_batch=2, micro_batches=2, anchors_per_sequence=6, steps=3,
        compiled=False,
    )  # fmt: skip
    folder = drafter_training.run(target_folder, continuations, continuations, tokens, drafter_recipe, tmp_path)

    drafter = load_drafter(folder)
    assert drafter.config.draft_block_size == drafter_recipe.draft_block_size
    AutoModelForCausalLM.from_pretrained(target_folder)
    with safe_open(folder / "model.safetensors", "pt") as checkpoint:
        assert {checkpoint.get_tensor(name).dtype for name in checkpoint.keys()} == {torch.bfloat16}
    report = json.loads((folder / "training.json").read_text())
    assert 1 <= report["held_out_acceptance"] <= drafter_recipe.draft_block_size


def _held_out(name: str) -> bool:
    return SourceFile(name, Path()).is_held_out
