"""What router, drafters and targets say to each other, as plain frozen types without torch or protobuf.

The wire forms are in `protos/`; `cluster/wire` translates between the two. Token ids are int32 arrays. Positions count
from 0 at the first prompt token.

What is made anew for every sequence in every round is a NamedTuple, the rest are frozen dataclasses, which take several
times as long to make.
"""

from dflash_core.contracts.common import (
    DraftTree,
    RawTensor,
    SamplingParams,
    SequenceKey,
    TokenIds,
)
from dflash_core.contracts.context import (
    ContextAck,
    ContextChunk,
    ContextSink,
    ContextStatus,
)
from dflash_core.contracts.drafts import (
    DEFAULT_RANKING,
    Draft,
    DraftBlock,
    Drafter,
    DrafterInfo,
    DraftRanking,
    DraftRequest,
    DraftResult,
)
from dflash_core.contracts.packed_drafts import PackedDraftBlocks, PackedDrafts
from dflash_core.contracts.packed_rounds import PackedOutcomes, PackedTreeRows
from dflash_core.contracts.rounds import (
    OUTCOME_OK,
    Outcome,
    OutcomeStatus,
    Prefill,
    Refill,
    RoundRequest,
    RoundResult,
    Target,
    TargetInfo,
    TreeRows,
)

__all__ = [
    "DEFAULT_RANKING",
    "ContextAck",
    "ContextChunk",
    "ContextSink",
    "ContextStatus",
    "Draft",
    "DraftBlock",
    "DraftRanking",
    "DraftRequest",
    "DraftResult",
    "DraftTree",
    "Drafter",
    "DrafterInfo",
    "Outcome",
    "OUTCOME_OK",
    "OutcomeStatus",
    "PackedDraftBlocks",
    "PackedDrafts",
    "PackedOutcomes",
    "PackedTreeRows",
    "Prefill",
    "RawTensor",
    "Refill",
    "RoundRequest",
    "RoundResult",
    "SamplingParams",
    "SequenceKey",
    "Target",
    "TargetInfo",
    "TokenIds",
    "TreeRows",
]
