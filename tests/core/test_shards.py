"""Modules that talk to other ranks, where there is one rank only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from dflash_core.parallel.ranks import Ranks, Rendezvous, open_store
from dflash_core.parallel.shards import ShardedEmbedding, SummedOverRanks


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    store = open_store("127.0.0.1")
    alone = Ranks(store, Rendezvous("127.0.0.1", store.port, 0, 1, 30.0, 0), torch.device("cpu"))
    yield alone
    alone.close()


@torch.inference_mode()
def test_they_compile_as_one_graph(ranks: Ranks) -> None:
    embedding, product = nn.Embedding(10, 8), nn.Linear(8, 8)
    model = nn.Sequential(ShardedEmbedding(embedding, 0, ranks.passes), SummedOverRanks(product, ranks.passes))
    token_ids = torch.arange(6)
    expected = product(embedding(token_ids))
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(token_ids), expected)


@torch.inference_mode()
def test_ids_of_other_ranks_count_as_zeros(ranks: Ranks) -> None:
    embedding = nn.Embedding(4, 3)
    found = ShardedEmbedding(embedding, 4, ranks.passes)(torch.tensor([3, 4, 7, 8]))
    assert torch.equal(found, torch.cat([torch.zeros(1, 3), embedding.weight[[0, 3]], torch.zeros(1, 3)]))
