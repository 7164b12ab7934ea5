"""Preloaded by the server that forks the cluster's processes: what takes seconds is done once, before any of them.

A process that starts from here is ready in tenths of a second; figures of recovery leave out the start of Python, torch
and numba's kernels, which a real replica has to wait for.
"""

from __future__ import annotations

import os

from tests.chaos.roles import ROLES

VARIABLE = "CHAOS_WARM_PAIR"  # "target folder:drafter folder"


def _load_kernels(target: str, drafter: str) -> None:
    """Loads both models once, and forgets them: neither starts a thread, so the process can still be forked."""
    options = {
        "target": target,
        "drafter": drafter,
        "target_settings": {"device": "cpu", "num_blocks": 64},
        "drafter_settings": {"device": "cpu", "num_blocks": 64},
    }
    for role in ("target", "drafter"):
        ROLES[role](options)


if VARIABLE in os.environ:
    _load_kernels(*os.environ[VARIABLE].split(":"))
