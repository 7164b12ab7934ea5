"""Tree attention of one layer: ours, dense SDPA and FlexAttention, against what memory and matrix units allow."""
