"""What a router knows at present of times, rates and drafts: for looking at, and for plots."""

from __future__ import annotations

from typing import Any

from cluster.router.router import Router


def learned(router: Router) -> dict[str, Any]:
    """JSON's types only. `expected_over_actual_tokens` is 1 where trees bring what was expected of them."""
    timings = router.timings
    return {
        "targets": [rounds.speculation.as_dict() for rounds in router.rounds],
        "drafters": [link.as_dict() for link in router.drafters],
        "expected_over_actual_tokens": timings.expected_tokens / max(1, timings.drafted_tokens),
    }
