"""The verification walk of a round's trees in one program, without a loop (see `dflash_core.trees.walk`)."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def walk_kernel(
    token_ids,  # int32 [num_rows]
    parents,  # int32 [num_rows]; negative: a root
    end_rows,  # int32 [num_rows]: the first row after the row's subtree
    choice_of_row,  # int32 [num_rows]: where the row's choice stands among `choices`
    choices,  # int64 [num_choices]
    slots,  # int32 [num_rows]: where the row's token goes if it is committed; negative: nowhere
    staged_rows,  # int32 [num_rows]: where a tree row was staged, rising by one; negative: in no tree
    first_tree_row,  # int32 [1]
    accepted,  # int32 [num_rows] out: 1 for rows that the target would have written itself
    committed_slots,  # int32 [num_rows] out: `slots` where accepted, else −1
    tree_slots,  # int32 [num_rows] out: the same for tree rows alone
    num_rows,
    TREE_ROWS: tl.constexpr,  # a power of 2, at least the number of tree rows
    OTHER_ROWS: tl.constexpr,  # rows of one of the other programs
):
    if tl.program_id(0) > 0:  # rows in no tree: committed as they are
        rows = (tl.program_id(0) - 1) * OTHER_ROWS + tl.arange(0, OTHER_ROWS)
        is_other = (rows < num_rows) & (tl.load(staged_rows + rows, mask=rows < num_rows, other=0) < 0)
        tl.store(accepted + rows, tl.full([OTHER_ROWS], 1, tl.int32), mask=is_other)
        tl.store(committed_slots + rows, tl.load(slots + rows, mask=is_other), mask=is_other)
        tl.store(tree_slots + rows, tl.full([OTHER_ROWS], -1, tl.int32), mask=is_other)
        return
    places = tl.arange(0, TREE_ROWS)
    start = tl.load(first_tree_row)
    rows = start + places
    is_row = rows < num_rows
    is_row = is_row & (tl.load(staged_rows + rows, mask=is_row, other=-1) >= 0)
    token = tl.load(token_ids + rows, mask=is_row, other=0)
    parent = tl.load(parents + rows, mask=is_row, other=-1)
    has_parent = parent >= 0
    place = tl.load(choice_of_row + parent, mask=has_parent, other=0)
    is_bad = has_parent & (token != tl.load(choices + place, mask=has_parent, other=0))
    # A bad row's subtree is blocked: an interval, whose end is nobody's where it reaches the last row.
    end = tl.load(end_rows + rows, mask=is_row, other=0) - start
    ends_inside = is_bad & (end < TREE_ROWS)
    ends_here = tl.histogram(tl.where(ends_inside, end, 0), TREE_ROWS, mask=ends_inside)
    is_accepted = tl.cumsum(is_bad.to(tl.int32) - ends_here, 0) == 0
    slot = tl.where(is_accepted, tl.load(slots + rows, mask=is_row, other=-1), -1)
    tl.store(accepted + rows, is_accepted.to(tl.int32), mask=is_row)
    tl.store(committed_slots + rows, slot, mask=is_row)
    tl.store(tree_slots + rows, slot, mask=is_row)
