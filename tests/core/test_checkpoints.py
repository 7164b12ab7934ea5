"""Finding checkpoints, comparing pairs, and the tensors that drafters borrow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, PreTrainedConfig

from dflash_core.errors import CheckpointMismatch, CheckpointNotFound, UnsupportedModel
from dflash_core.models.checkpoints import TargetConfig, check_pair, resolve_checkpoint
from dflash_core.models.drafter_config import DrafterConfig
from dflash_core.models.shared_tensors import EmbeddingAndHead, fc_fingerprint
from tests.tiny import TinyPair, make_tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


def test_a_folder_is_itself(pair: TinyPair) -> None:
    assert resolve_checkpoint(str(pair.drafter)) == pair.drafter


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "/nowhere/at/all"),
        ("embedded:gpt-5", "embedded:stdlib-6m and embedded:stdlib-6m-dflash"),
        ("not a/model name", "not a/model name"),
        ("", "checkpoint ''"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(CheckpointNotFound, match=message):
        resolve_checkpoint(name)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=rf"no config\.json in {tmp_path}"):
        resolve_checkpoint(str(tmp_path))


def test_hub_names_come_from_the_local_cache(pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointNotFound, match=f"'some/model' is no folder .*{tmp_path}"):
        resolve_checkpoint("some/model")

    commit = "0" * 40
    repository = tmp_path / "models--some--model"
    shutil.copytree(pair.drafter, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert (resolve_checkpoint("some/model") / "model.safetensors").is_file()


def test_configs_are_read_without_torch(pair: TinyPair) -> None:
    code = (
        "import sys; from pathlib import Path; from dflash_core.models.checkpoints import *\n"
        "check_pair(TargetConfig.load(Path(sys.argv[1])), DrafterConfig.load(resolve_checkpoint(sys.argv[2])))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(pair.target), str(pair.drafter)], check=True)


def test_a_pair_that_belongs_together_passes(pair: TinyPair) -> None:
    check_pair(TargetConfig.load(pair.target), DrafterConfig.load(pair.drafter))


def test_a_mismatch_shows_both_values(pair: TinyPair) -> None:
    target, drafter = TargetConfig.load(pair.target), DrafterConfig.load(pair.drafter)
    with pytest.raises(CheckpointMismatch) as caught:
        check_pair(replace(target, num_layers=2, hidden_size=48, vocab_size=512), drafter)
    message = str(caught.value)
    assert "num_target_layers: the drafter says 3, the target has 2" in message
    assert "hidden_size: the drafter says 32, the target has 48" in message
    assert "vocab_size: the drafter says 300, the target has 512" in message
    assert "reads layer 2, the target's last is 1" in message


def test_targets_with_scales_of_their_own_are_refused(pair: TinyPair) -> None:
    raw = json.loads((pair.target / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match="logits_scaling"):
        TargetConfig.from_json(raw | {"model_type": "granite", "logits_scaling": 8.0})
    with pytest.raises(CheckpointMismatch, match="num_hidden_layers"):
        TargetConfig.from_json(raw | {"num_hidden_layers": None})


@pytest.mark.parametrize("ties", [False, True])
def test_embedding_and_head_are_the_targets(tmp_path: Path, ties: bool) -> None:
    folder = make_tiny_pair(tmp_path, tie_word_embeddings=ties).target
    shared = EmbeddingAndHead.load(folder, TargetConfig.load(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, hidden = torch.tensor([5, 299]), torch.randn(2, 32)
    assert torch.equal(shared.embed(ids), model.get_input_embeddings()(ids))
    torch.testing.assert_close(shared.logits(hidden), model.get_output_embeddings()(hidden))
    assert (shared.head is shared.embedding) == ties


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config_class", [Gemma2Config, Gemma3TextConfig])
def test_scaled_embeddings_and_capped_logits(
    tmp_path: Path, config_class: type[PreTrainedConfig], dtype: torch.dtype
) -> None:
    """Gemmas multiply embeddings by √hidden (rounded to their dtype) and can softcap logits; weights in two shards."""
    config = config_class(
        vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, final_logit_softcapping=0.05,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    shared = EmbeddingAndHead.load(tmp_path, TargetConfig.load(tmp_path), dtype)
    ids = torch.tensor([[3, 39, 0]])
    read: list[torch.Tensor] = []
    model.model.layers[0].register_forward_pre_hook(lambda _module, args: read.append(args[0]))
    model.model.norm.register_forward_hook(lambda _module, _args, output: read.append(output))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(shared.embed(ids), read[0])
        torch.testing.assert_close(shared.logits(read[1]), logits)
    assert logits.abs().max() <= 0.05


def test_a_target_without_the_tensors_is_refused(pair: TinyPair, tmp_path: Path) -> None:
    config = TargetConfig.load(pair.target)
    weights = load_file(pair.target / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"shape \[300, 32\], its config says \[301, 32\]"):
        EmbeddingAndHead.load(tmp_path, replace(config, vocab_size=301))
    del weights["model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"embed_tokens\.weight"):
        EmbeddingAndHead.load(tmp_path, config)


def test_the_fingerprint_is_of_fc_and_hidden_norm_alone(pair: TinyPair, tmp_path: Path) -> None:
    weights = load_file(pair.drafter / "model.safetensors")

    def fingerprint(name: str) -> str:
        changed = weights | {name: weights[name] + 1}
        save_file(changed, tmp_path / "model.safetensors")
        return fc_fingerprint(tmp_path)

    own = fc_fingerprint(pair.drafter)
    assert fingerprint("norm.weight") == own
    assert len({own, fingerprint("fc.weight"), fingerprint("hidden_norm.weight")}) == 3
