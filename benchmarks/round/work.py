"""What a round must read and compute at least, counted from the models' sizes.

Weights are read once (of the embedding table only a few rows: it counts as nothing, the head as a whole), keys and
values of the context once, what is committed is written once. Activations and logits need not leave the chip.
"""

from __future__ import annotations

import torch

from benchmarks.limits import Work
from benchmarks.random_pair import PairShape
from benchmarks.round.points import Cell, Round


def target_work(
    shape: PairShape, dtype: torch.dtype, cell: Cell, round_: Round, context: float, num_accepted: float
) -> Work:
    """`context`: of each sequence; `num_accepted`: draft tokens of all sequences together."""
    tree_rows = cell.batch * round_.tree_rows
    rows = tree_rows + round_.prefill_rows
    num_committed = cell.batch + num_accepted + round_.prefill_rows
    layers = shape.num_layers * layer_weights(shape)
    projection = len(shape.target_layer_ids) * shape.hidden_size**2  # the drafter's fc, which the target applies
    token = token_numbers(shape, shape.num_layers)
    numbers = layers + head_weights(shape) + projection + cell.batch * context * token
    numbers += num_committed * (token + shape.hidden_size)  # keys, values and feature
    # A tree row sees the context, and of the rows in flight at least itself.
    seen = tree_rows * (context + 1) + round_.prefill_rows * (round_.prefill_rows + 1) / 2
    operations = 2 * (rows * layers + tree_rows * head_weights(shape) + num_committed * projection)
    return Work(numbers * dtype.itemsize, operations + attention_operations(shape, shape.num_layers, seen))


def drafter_work(shape: PairShape, dtype: torch.dtype, batch: int, context: float, num_appended: int) -> Work:
    """`num_appended`: features that each sequence gets before it drafts."""
    rows = batch * shape.draft_block_size
    layers = shape.num_draft_layers * layer_weights(shape)
    token = token_numbers(shape, shape.num_draft_layers)
    numbers = layers + head_weights(shape) + batch * (context + num_appended) * token
    numbers += batch * num_appended * shape.hidden_size
    seen = rows * (context + num_appended + shape.draft_block_size)
    operations = 2 * (rows * layers + batch * (shape.draft_block_size - 1) * head_weights(shape))
    operations += 2 * batch * num_appended * token * shape.hidden_size  # projections to keys and values
    return Work(numbers * dtype.itemsize, operations + attention_operations(shape, shape.num_draft_layers, seen))


def layer_weights(shape: PairShape) -> int:
    """Numbers in the matrices of one layer."""
    attention = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    return shape.hidden_size * (attention + 3 * shape.intermediate_size)


def head_weights(shape: PairShape) -> int:
    return shape.vocab_size * shape.hidden_size


def token_numbers(shape: PairShape, num_layers: int) -> int:
    """Numbers in the keys and values of one token."""
    return num_layers * 2 * shape.num_kv_heads * shape.head_dim


def attention_operations(shape: PairShape, num_layers: int, num_seen: float) -> float:
    """Of `num_seen` pairs of row and key: two products of `head_dim` in each head."""
    return num_layers * 4 * shape.num_heads * shape.head_dim * num_seen
