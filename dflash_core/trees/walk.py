"""The verification walk over packed trees without a loop: which rows the target would have written itself.

A row is bad when its token is not what the target chose at its parent. Badness spreads to the whole subtree, which in
preorder is an interval: +1 where a bad row's interval starts, −1 where it ends, and a running sum is 0 exactly on the
rows without a bad ancestor (KERNELS, "Verification walk"). Siblings being distinct, those rows are one path per tree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def accepted_rows(
    token_ids: npt.NDArray[np.integer],
    parents: npt.NDArray[np.integer],
    end_rows: npt.NDArray[np.integer],
    choices: npt.NDArray[np.integer],
) -> npt.NDArray[np.bool_]:
    """bool `[num_rows]`: the accepted rows of a pack of trees, every root among them.

    The bonus token of a tree is the choice at its last accepted row.

    Args:
        token_ids, parents, end_rows: `[num_rows]`, as `structure` gives them for the pack.
        choices: `[num_rows]`, the token that the target chose at each row.
    """
    is_bad = (parents >= 0) & (token_ids != choices[parents])
    starts_minus_ends = is_bad.astype(np.int64)
    num_rows = len(token_ids)
    starts_minus_ends -= np.bincount(end_rows[is_bad], minlength=num_rows + 1)[:num_rows]
    accepted: npt.NDArray[np.bool_] = np.cumsum(starts_minus_ends) == 0
    return accepted
