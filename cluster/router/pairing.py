"""Which targets and drafters belong together, told by their fingerprints."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dflash_core.contracts import DrafterInfo, TargetInfo
from dflash_core.errors import CheckpointMismatch

logger = logging.getLogger(__name__)


def check_same_model(ours: TargetInfo, theirs: TargetInfo) -> None:
    """A sequence may move between the targets of a router. Raises `CheckpointMismatch`."""
    if (ours.weights_fingerprint, ours.vocab_size) != (theirs.weights_fingerprint, theirs.vocab_size):
        raise CheckpointMismatch(
            f"target {theirs.model!r} (weights {theirs.weights_fingerprint}, vocabulary {theirs.vocab_size}) "
            f"is not the model served here: {ours.model!r} (weights {ours.weights_fingerprint}, "
            f"vocabulary {ours.vocab_size})"
        )


def is_paired(target: TargetInfo, drafter: DrafterInfo) -> bool:
    """Whether the drafter understands the target's features; says so in the log where it does not."""
    if target.fc_fingerprint == drafter.fingerprint:
        return True
    logger.warning(
        "drafter %r (fc fingerprint %r) cannot serve target %r (which applies fc %r)",
        drafter.model,
        drafter.fingerprint,
        target.model,
        target.fc_fingerprint,
    )
    return False


def check_fits_any(targets: Sequence[TargetInfo], drafter: DrafterInfo) -> None:
    """Raises `CheckpointMismatch` for a drafter that could serve none of the targets, if there are any."""
    if targets and not any(is_paired(target, drafter) for target in targets):
        raise CheckpointMismatch(
            f"drafter {drafter.model!r} has fc fingerprint {drafter.fingerprint!r}, "
            f"target {targets[0].model!r} applies {targets[0].fc_fingerprint!r}"
        )
