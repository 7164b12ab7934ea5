"""The rule of the soak against curves whose answer is known, and a run of seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.runs import chaos_cluster
from tests.chaos.workload import make_workload
from tests.soak.levels import Rule
from tests.soak.run import Soak
from tests.tiny import make_tiny_pair

RULE = Rule(relative=0.05, absolute=8.0)


def test_what_settles_is_flat() -> None:
    level = RULE.check([10.0, 50.0, 90.0, 99.0, *[100.0, 103.0, 98.0] * 4])
    assert level.is_flat
    assert level.settled == pytest.approx(100.0, abs=3.0)


@pytest.mark.parametrize("per_sample", [1.0, 0.5])
def test_what_grows_is_not(per_sample: float) -> None:
    assert not RULE.check([100.0 + per_sample * place for place in range(60)]).is_flat


def test_a_peak_in_between_is_no_growth() -> None:
    assert RULE.check([100.0] * 20 + [500.0] * 4 + [100.0] * 20).is_flat


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="7 samples are too few"):
        RULE.check([1.0] * 7)


@pytest.mark.cluster
@pytest.mark.slow
async def test_a_soak_of_seconds(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path / "pair", num_layers=2, target_layer_ids=(0, 1))
    workload = await make_workload(pair)
    async with chaos_cluster(tmp_path / "cluster", pair) as cluster:
        soak = Soak(cluster, workload, seed=1)
        await soak.run(seconds=10.0, num_streams=8, sample_s=1.0, kill_s=2.0)
    assert soak.counts["checked"] > 0
    assert any(name.startswith("killed") for name in soak.counts)
    assert len({sample.process for sample in soak.samples}) >= 7
    assert all(soak.figures_of(process, "uss_mib")[1] for process in soak.long_lived)
