"""Writes the embedded pair's model card from what training and a benchmark left: no figure is typed by hand.

`dflash bench --json found.json && python scripts/make_model_card.py found.json` rewrites dflash_core/embedded/README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).resolve().parent.parent / "dflash_core" / "embedded"

CARD = """\
# The embedded pair: stdlib-6m and stdlib-6m-dflash

A small target and its DFlash drafter, so that everything in this project runs, and is tested, on two CPU cores without a download. The target continues Python source; it is there to be decoded, not to be good.

| | target `embedded:stdlib-6m` | drafter `embedded:stdlib-6m-dflash` |
|---|---|---|
| architecture | Qwen3, {target_layers} layers of width {hidden_size}, {num_heads} heads of {head_dim}, {num_kv_heads} KV heads, intermediate {intermediate_size}, tied embeddings | DFlash, {drafter_layers} layers of the same width, block {draft_block_size}, reads layers {layer_ids} |
| vocabulary | {vocab_size} tokens, byte-level BPE; a mask token for the drafter | the target's |
| files | {target_mb:.1f} MB, bf16 safetensors | {drafter_mb:.1f} MB, bf16 safetensors, in the layout of published DFlash checkpoints |
| context | {max_length} tokens | the target's |

## Data

The `.py` files of the Python standard library that the training interpreter ships, its tests included: {train_tokens:,} tokens. One file in forty, by a hash of its name, is held out from tokenizer, target and drafter (`dflash_core/training/corpus.py`). The library is copyright © 2001 Python Software Foundation and distributed under the PSF License Agreement; nothing else was used.

The drafter learns from the target's own continuations of excerpts of 24 to 80 tokens ({num_sequences:,} sequences, greedy and at temperature 1; a random file first, then a random place in it) and, for {corpus_percent:.0f} % of its sequences, from the corpus.

## Recipe

`python -m dflash_core.training target`, then `… drafter`, with fixed seeds; both resume where they stopped.

Target: {target_recipe}.

Drafter: {drafter_recipe}. Slots and roots weigh as they matter for the number of rounds (`round_weights` in `dflash_core/training/block_loss.py`). On greedy continuations the label is the token that the target wrote, elsewhere the target's whole next-token distribution. The drafter shipped here started (`--start`) from one with an MLP of 576 after 1,700 steps on 3,200 continuations, in which slots weighed exp(−(k − 1)/4), a tenth of the sequences (in the first 400 steps a quarter) came from the corpus, and excerpts from anywhere in the text; a quarter of its own continuations are of that kind too.

## What it gives

Held-out loss of the target: {held_out_loss:.3f} nats per token. Acceptance length (tokens per round) decoded by `dflash bench` on {num_prompts} held-out excerpts, {max_tokens} tokens each; outputs the same in every arm: {identical} of {outputs}.

{acceptance}

Measured with {processor}, {cores} cores, commit {commit}.

## Limits

It has seen Python source alone, up to {longest} tokens at a time; expect plausible nonsense, and text of the standard library from memory. It is not for use in earnest.
"""


def card(report: dict[str, Any], target: dict[str, Any], drafter: dict[str, Any]) -> str:
    """`report` is the JSON of `dflash bench`, the others are the training reports of the two models."""
    shape, draft = target["recipe"], drafter["recipe"]
    results = report["results"]
    return CARD.format(
        **{name: shape[name] for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")},
        **{name: shape[name] for name in ("vocab_size", "max_length")},
        target_layers=shape["num_layers"],
        drafter_layers=draft["num_layers"],
        draft_block_size=draft["draft_block_size"],
        layer_ids=", ".join(map(str, draft["target_layer_ids"])),
        target_mb=_megabytes(EMBEDDED / "target"),
        drafter_mb=_megabytes(EMBEDDED / "drafter"),
        train_tokens=target["train_tokens"],
        num_sequences=drafter["sequences"],
        corpus_percent=100 * draft["corpus_fraction"],
        target_recipe=_recipe(shape),
        drafter_recipe=_recipe(draft),
        held_out_loss=target["held_out_loss"],
        num_prompts=report["settings"]["num_prompts"],
        max_tokens=report["settings"]["max_tokens"],
        identical=sum(entry["num_identical"] for entry in results),
        outputs=sum(entry["num_outputs"] for entry in results),
        acceptance=_acceptance_table(results),
        longest=max(shape["sequence_length"], shape["long_sequence_length"]),
        **{name: report["machine"][name] for name in ("processor", "cores", "commit")},
    )


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


def _recipe(recipe: dict[str, Any]) -> str:
    """The numbers of a recipe that are no part of the model's shape, by their names in the code."""
    shape = ("size", "layers", "heads", "dim", "ids", "max_length")
    return ", ".join(f"{name} {value}" for name, value in recipe.items() if not name.endswith(shape))


def _acceptance_table(results: list[dict[str, Any]]) -> str:
    """One row per arm that drafts, one column per temperature, at one request at a time."""
    single = [entry for entry in results if entry["concurrency"] == 1 and entry["acceptance_length"] is not None]
    temperatures = sorted({entry["temperature"] for entry in single})
    lines = ["| | " + " | ".join(f"T = {temperature:g}" for temperature in temperatures) + " |"]
    lines.append("|---|" + "---|" * len(temperatures))
    for arm in dict.fromkeys(entry["arm"] for entry in single):
        if arm == "plain":
            continue
        found = {entry["temperature"]: entry["acceptance_length"] for entry in single if entry["arm"] == arm}
        cells = [f"{found[temperature]:.2f}" if temperature in found else "" for temperature in temperatures]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    target = json.loads((EMBEDDED / "target" / "training.json").read_text(encoding="utf-8"))
    drafter = json.loads((EMBEDDED / "drafter" / "training.json").read_text(encoding="utf-8"))
    (EMBEDDED / "README.md").write_text(card(report, target, drafter), encoding="utf-8")


if __name__ == "__main__":
    main()
