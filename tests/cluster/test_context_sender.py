"""The target's pipes to drafters that come and go."""

from __future__ import annotations

import random
from pathlib import Path

from tests.cluster.serving import make_cluster, tiny_request
from tests.tiny import make_tiny_pair
from tests.waiting import until


async def test_the_pipe_to_a_drafter_ends_with_it_and_is_forgotten(tmp_path: Path) -> None:
    """Also when there is nothing to send any more: each new drafter has another address."""
    pair = make_tiny_pair(tmp_path, num_layers=2, target_layer_ids=(0, 1))
    rng = random.Random(0)
    async with make_cluster(pair) as cluster:
        sink = cluster.targets[0].agent._context_sink
        for number in range(3):
            (drafter,) = cluster.drafters
            request = tiny_request(rng, f"r{number}", pair.settings.vocab_size, max_tokens=40, tree_budget=8)
            cluster.pool.submit(request, cluster.client)
            await cluster.client.wait(request.sequence_id)
            assert list(sink._pipes) == [drafter.address]
            await cluster.lose(drafter)
            pipe = sink._pipes[drafter.address]
            await until(lambda pipe=pipe: pipe.is_idle)
            await cluster.add_drafter()
