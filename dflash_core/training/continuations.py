"""The target's own continuations: what a drafter must learn to predict is what the target writes, not the corpus."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from dflash_core.training.tokenizer import END_OF_TEXT_ID


@dataclass(frozen=True)
class ContinuationRecipe:
    """`num_batches` shards of `batch_size` sequences of `length` tokens, prompt included."""

    num_batches: int = 160
    batch_size: int = 64
    length: int = 256
    shortest_prompt: int = 24
    longest_prompt: int = 80
    greedy_fraction: float = 0.6  # the rest is sampled at temperature 1
    seed: int = 0


@dataclass(frozen=True)
class Continuations:
    token_ids: npt.NDArray[np.uint16]  # [num_sequences, length]
    prompt_lens: npt.NDArray[np.int32]  # [num_sequences]
    is_greedy: npt.NDArray[np.bool_]  # [num_sequences]


def write_shards(
    target: Path,
    tokens: npt.NDArray[np.uint16],
    folder: Path,
    recipe: ContinuationRecipe,
    worker: int = 0,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
) -> None:
    """Writes the shards of `worker` that are not there yet; prompts are excerpts of `tokens`.

    Each prompt is from another random file, at a random place in it: a few large files, which hold tables and long
    lists of tests, would else be most of what a drafter sees. A shard's content follows from the recipe's seed and
    the shard's number alone, on one kind of device. On a GPU the target runs in bf16, the dtype it is stored in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
    nn.Module.to(model, device)
    shards = [i for i in range(worker, recipe.num_batches, num_workers) if not _shard(folder, i).exists()]
    for index in track(shards, description=f"continuations (worker {worker})"):
        batch = _continue(model, tokens, recipe, index)
        partial = folder / f"{index:05d}.partial.npz"
        np.savez(partial, token_ids=batch.token_ids, prompt_lens=batch.prompt_lens, is_greedy=batch.is_greedy)
        os.replace(partial, _shard(folder, index))


def write_shards_in_processes(
    target: Path, tokens: npt.NDArray[np.uint16], folder: Path, recipe: ContinuationRecipe, num_processes: int
) -> None:
    """`write_shards`, one thread per process: decoding's small matrix products gain little from a second thread.

    Raises `RuntimeError` when a process fails; what it had written stays.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(target, tokens, folder, recipe, worker, num_processes))
        for worker in range(num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"{len(failed)} of {num_processes} processes failed, with exit codes {failed}")


def _work(
    target: Path,
    tokens: npt.NDArray[np.uint16],
    folder: Path,
    recipe: ContinuationRecipe,
    worker: int,
    num_workers: int,
) -> None:
    torch.set_num_threads(1)
    write_shards(target, tokens, folder, recipe, worker, num_workers)


def read_shards(folder: Path, num_batches: int) -> Continuations:
    """All shards of a folder. Raises `FileNotFoundError` when one of `num_batches` is missing."""
    shards = [np.load(_shard(folder, i)) for i in range(num_batches)]
    return Continuations(
        np.concatenate([s["token_ids"] for s in shards]),
        np.concatenate([s["prompt_lens"] for s in shards]),
        np.concatenate([s["is_greedy"] for s in shards]),
    )


def _shard(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npz"


def _prompt_starts(
    rng: np.random.Generator, tokens: npt.NDArray[np.uint16], prompt_len: int, count: int
) -> npt.NDArray[np.int64]:
    """Where `count` prompts of `prompt_len` tokens start: a file first, each as likely, then a place inside it."""
    bounds = np.append(np.flatnonzero(tokens == END_OF_TEXT_ID), len(tokens))
    long_enough = np.flatnonzero(np.diff(bounds) > prompt_len)
    files = rng.choice(long_enough, count)
    starts: npt.NDArray[np.int64] = bounds[files] + rng.integers(1, bounds[files + 1] - bounds[files] - prompt_len + 1)
    return starts


@torch.inference_mode()
def _continue(
    model: PreTrainedModel, tokens: npt.NDArray[np.uint16], recipe: ContinuationRecipe, index: int
) -> Continuations:
    """One batch; its prompts share a length, so that nothing is padded."""
    rng = np.random.default_rng([recipe.seed, index])
    torch.manual_seed(int(rng.integers(2**31)))
    prompt_len = int(rng.integers(recipe.shortest_prompt, recipe.longest_prompt + 1))
    starts = _prompt_starts(rng, tokens, prompt_len, recipe.batch_size)
    prompts = np.stack([tokens[s : s + prompt_len] for s in starts]).astype(np.int64)
    greedy = index % 10 < round(10 * recipe.greedy_fraction)
    config = GenerationConfig(
        max_new_tokens=recipe.length - prompt_len,
        do_sample=not greedy,
        temperature=None if greedy else 1.0,
        top_k=None if greedy else 0,
        eos_token_id=None,  # runs on into the next file, as the training text does
        pad_token_id=0,
    )
    input_ids = torch.from_numpy(prompts).to(model.device)
    written = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config)  # type: ignore[operator]
    return Continuations(
        written.cpu().numpy().astype(np.uint16),
        np.full(recipe.batch_size, prompt_len, dtype=np.int32),
        np.full(recipe.batch_size, greedy),
    )
