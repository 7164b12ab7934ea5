"""What a round committed, as its sequences remember it: their tokens, and blocks that others may now find."""

from __future__ import annotations

from dflash_core.cache.prefix import PrefixCache
from dflash_core.contracts import Outcome, OutcomeStatus
from dflash_core.runners.target_plan import PlannedPrefill, PlannedTree, RoundPlan


def record_committed(plan: RoundPlan, cache: PrefixCache | None) -> None:
    """To be called once the round's keys, values and features are all in their pages: whoever finds a block needs
    them all."""
    with_rows: tuple[PlannedPrefill | PlannedTree, ...] = (*plan.prefills, *plan.trees)
    for planned in with_rows:
        outcome = plan.outcomes[planned.place]
        if outcome is None or outcome.status is not OutcomeStatus.OK:
            continue
        sequence = planned.sequence
        sequence.token_ids += _committed_tokens(planned, outcome)
        assert len(sequence.token_ids) == sequence.cached_len, (
            f"{sequence.key} has {len(sequence.token_ids)} tokens, its KV {sequence.cached_len}"
        )
        if cache is not None and sequence.chain is not None:
            cache.publish(sequence.block_table, sequence.token_ids, sequence.chain)


def _committed_tokens(planned: PlannedPrefill | PlannedTree, outcome: Outcome) -> list[int]:
    """Those whose rows were written: the bonus token's was not."""
    token_ids: list[int]
    if isinstance(planned, PlannedPrefill):
        token_ids = planned.prefill.token_ids.tolist()
    else:
        token_ids = [int(planned.rows.tree.token_ids[0]), *outcome.token_ids.tolist()]
    return token_ids
