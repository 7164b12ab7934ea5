"""What rounds and drafts take, learned from those that were run: see `LatencyEstimator` for how. Without torch."""

from cluster.router.latency.drafts import DraftTimeModel
from cluster.router.latency.load import RoundLoad
from cluster.router.latency.rounds import RoundTimeModel

__all__ = ["DraftTimeModel", "RoundLoad", "RoundTimeModel"]
