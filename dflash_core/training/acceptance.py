"""What a drafter is judged by: the tokens per round that greedy decoding with it would give."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dflash_core.training.block_loss import BlockLoss, target_states
from dflash_core.training.continuations import Continuations
from dflash_core.training.loop import autocast


def decoded_acceptance_length(
    block_loss: BlockLoss, held_out: Continuations, most_sequences: int = 384, most_tokens: int = 128
) -> float:
    """Mean greedy chain acceptance length over the rounds in which the held-out greedy continuations would be decoded.

    The target wrote them greedily, so that decoding commits the same tokens whatever is drafted: a round from each
    root is known without decoding, and a walk over the roots, each round's length to the next, meets those that
    decoding meets. (The mean over all roots would be larger: long rounds skip the roots after them.)
    """
    num_rounds = num_tokens = 0
    size = block_loss.drafter.config.draft_block_size
    greedy = np.flatnonzero(held_out.is_greedy)[:most_sequences]
    for row, prompt_len in zip(held_out.token_ids[greedy], held_out.prompt_lens[greedy].tolist(), strict=True):
        end = min(len(row), prompt_len + most_tokens + size - 1)
        token_ids = torch.from_numpy(row[:end].astype(np.int64))[None].to(block_loss.device)
        roots = torch.arange(prompt_len, end - size + 1, device=block_loss.device)[None]
        rounds = walk(chain_acceptance_length(block_loss, token_ids, roots)[0])
        num_rounds += len(rounds)
        num_tokens += sum(rounds)
    return num_tokens / num_rounds


def walk(lengths: Tensor) -> list[int]:
    """Lengths of the rounds that decoding from root 0 meets, where the round at root i commits `lengths[i]` tokens."""
    rounds: list[int] = []
    root, of_root = 0, lengths.tolist()
    while root < len(of_root):
        rounds.append(int(of_root[root]))
        root += rounds[-1]
    return rounds


@torch.no_grad()
def chain_acceptance_length(block_loss: BlockLoss, token_ids: Tensor, anchors: Tensor) -> Tensor:
    """`[batch, anchors]` tokens per round of a greedy chain at these roots, on greedy continuations:
    the drafted tokens up to the first that the target did not write, and the bonus token."""
    config = block_loss.drafter.config
    with autocast(block_loss.device):
        raw_features = target_states(block_loss.target, token_ids, config.target_layer_ids)[..., : -config.hidden_size]
        drafted = block_loss.draft_logits(token_ids, anchors, raw_features).argmax(-1)
    positions, inside = block_loss.predicted_positions(anchors, token_ids.shape[1])
    written = token_ids[torch.arange(len(token_ids), device=token_ids.device)[:, None, None], positions]
    return ((drafted == written) & inside).cumprod(-1).sum(-1) + 1
