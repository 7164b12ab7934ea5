"""Loading targets: what is refused and how it is said."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Qwen3ForCausalLM

from dflash_core.contracts import RoundRequest, SequenceKey
from dflash_core.errors import CheckpointMismatch, CheckpointNotFound, InvalidSettings, UnsupportedModel
from dflash_core.models import target_loading
from dflash_core.models.target_loading import load_target
from dflash_core.runners.settings import TargetSettings
from dflash_core.runners.target import TargetRunner
from tests.core.target_models import CONFIGS, decode_plainly, generate, make_subject, prefill_of, random_prompt, run
from tests.tiny import TinyPair, make_tiny_pair

SETTINGS = TargetSettings(kv_block_size=4, num_blocks=128, device="cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


def test_a_loaded_target_decodes_like_generate(pair: TinyPair) -> None:
    runner = TargetRunner.load(str(pair.target), str(pair.drafter), SETTINGS)
    info = runner.info
    assert (info.num_layers, info.hidden_size, info.max_model_len) == (3, 32, 512)
    assert (info.num_blocks, runner.free_blocks, runner.num_sequences) == (128, 128, 0)
    assert info.eos_token_ids == (0,)
    assert info.weights_fingerprint
    assert info.fc_fingerprint
    twin = Qwen3ForCausalLM.from_pretrained(pair.target, dtype=torch.float32)
    prompt = random_prompt(0, 12)
    assert decode_plainly(runner, prompt, 16) == generate(twin, prompt, 16)


def test_a_target_without_a_drafter_sends_no_features(pair: TinyPair) -> None:
    runner = TargetRunner.load(str(pair.target), None, SETTINGS)
    assert runner.info.fc_fingerprint == ""
    assert runner.run_round(RoundRequest(1)).context == {}
    with_drafter = TargetRunner.load(str(pair.target), str(pair.drafter), SETTINGS)
    assert with_drafter.info.weights_fingerprint == runner.info.weights_fingerprint


def test_bfloat16_decodes_and_sends_features_in_its_own_dtype(pair: TinyPair) -> None:
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16"})
    runner = TargetRunner.load(str(pair.target), str(pair.drafter), settings)
    prompt = random_prompt(0, 12)
    assert len(decode_plainly(runner, prompt, 5)) == 5
    done = run(runner, prefills=(prefill_of(SequenceKey("s", 0), prompt, drafter_address="d"),))
    (chunk,) = done.context["d"]
    assert (chunk.features.dtype, chunk.features.shape) == ("bfloat16", (12, 32))


def test_weights_that_are_no_numbers_are_found_at_load(pair: TinyPair, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((pair.target / "config.json").read_text())
    tensors = load_file(pair.target / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatch, match="logits for position 1 are not numbers"):
        TargetRunner.load(str(tmp_path), None, SETTINGS)


def test_other_weights_have_another_fingerprint(pair: TinyPair, tmp_path: Path) -> None:
    other = make_tiny_pair(tmp_path, seed=1)
    first, second = (TargetRunner.load(str(p.target), None, SETTINGS).info for p in (pair, other))
    assert first.weights_fingerprint != second.weights_fingerprint


def test_a_drafter_of_another_target_is_refused(pair: TinyPair, tmp_path: Path) -> None:
    other = make_tiny_pair(tmp_path, num_layers=4)
    with pytest.raises(CheckpointMismatch, match="num_target_layers: the drafter says 4, the target has 3"):
        TargetRunner.load(str(pair.target), str(other.drafter), SETTINGS)


def test_missing_files_and_tensors_are_named(pair: TinyPair, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="nowhere"):
        TargetRunner.load(str(tmp_path / "nowhere"), None, SETTINGS)
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "config.json").write_text((pair.target / "config.json").read_text())
    with pytest.raises(CheckpointNotFound, match="no weights in .*: neither model.safetensors nor"):
        TargetRunner.load(str(folder), None, SETTINGS)
    tensors = load_file(pair.target / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatch, match=r"lacks .*model\.layers\.1\.mlp\.up_proj\.weight"):
        TargetRunner.load(str(folder), None, SETTINGS)


def test_a_checkpoint_in_shards_loads_and_names_a_missing_one(pair: TinyPair, tmp_path: Path) -> None:
    Qwen3ForCausalLM.from_pretrained(pair.target, dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="16KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    settings = SETTINGS.model_copy(update={"dtype": "float32"})
    fingerprints = [TargetRunner.load(str(f), None, settings).info.fingerprint for f in (pair.target, tmp_path)]
    assert fingerprints[0] == fingerprints[1]
    shards[1].write_bytes(shards[1].read_bytes()[:-4])
    with pytest.raises(CheckpointMismatch, match="weights in .* do not match"):
        TargetRunner.load(str(tmp_path), None, settings)
    shards[1].unlink()
    with pytest.raises(CheckpointNotFound, match=f"names files that are not there: {shards[1]}"):
        TargetRunner.load(str(tmp_path), None, settings)


def test_experts_stored_one_by_one_are_joined(tmp_path: Path) -> None:
    """And what progress counts is all of the model."""
    subject = make_subject("qwen3_moe")
    subject.twin.save_pretrained(tmp_path)
    assert any(".experts.7." in name for name in load_file(tmp_path / "model.safetensors"))
    arrived: list[int] = []
    total = 4 * sum(parameter.numel() for parameter in subject.twin.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_loading, "load_progress", lambda what, size: nullcontext(arrived.append))
        model = load_target(tmp_path, torch.float32, torch.device("cpu"))
    assert sum(arrived) == total
    prompt = random_prompt(0, 12)
    assert decode_plainly(TargetRunner(model, None, SETTINGS), prompt, 12) == generate(subject.twin, prompt, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_goes_to_the_device_that_was_asked_for(
    pair: TinyPair, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU, and no whole model is moved there. How much host memory is taken meanwhile
    only a GPU can show: files are mapped, and each tensor is copied from there."""

    def moved(*_: object) -> None:
        raise AssertionError("a whole model was moved")

    monkeypatch.setattr(PreTrainedModel, "to", moved)
    model = load_target(pair.target, dtype, torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_loading_prints_no_bar_of_transformers(pair: TinyPair, capfd: pytest.CaptureFixture[str]) -> None:
    load_target(pair.target, torch.float32, torch.device("cpu"))
    assert capfd.readouterr() == ("", "")


def test_tensors_of_another_shape_are_a_mismatch(pair: TinyPair, tmp_path: Path) -> None:
    config = json.loads((pair.target / "config.json").read_text()) | {"intermediate_size": 72}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((pair.target / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointMismatch, match="do not match"):
        TargetRunner.load(str(tmp_path), None, SETTINGS)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "homemade", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsupportedModel, match="homemade"):
        TargetRunner.load(str(tmp_path), None, SETTINGS)


def test_the_pool_is_sized_from_memory_or_refused() -> None:
    def runner(**settings: int) -> TargetRunner:
        model = Qwen3ForCausalLM(copy.deepcopy(CONFIGS["qwen3"]))
        return TargetRunner(model, None, TargetSettings(device="cpu", kv_block_size=4, **settings))

    block_bytes = 3 * 2 * 2 * 8 * 4 * 4  # layers, key and value, KV heads, dim, tokens, bytes
    assert runner(kv_cache_bytes=40 * block_bytes + 5).free_blocks == 40
    with pytest.raises(InvalidSettings, match=f"max_model_len 128 needs .*to at least {32 * block_bytes},"):
        runner(kv_cache_bytes=31 * block_bytes)
    with pytest.raises(InvalidSettings, match=r"by num_blocks 31, the cache holds 124 tokens.*at least 32"):
        runner(num_blocks=31)
    assert runner(num_blocks=5, max_model_len=20).info.max_model_len == 20


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="blocksize"):
        TargetSettings.model_validate({"blocksize": 4})
    with pytest.raises(ValueError, match="max_tree_rows 64 exceeds max_rows 32"):
        TargetSettings(max_rows=32, max_tree_rows=64)
