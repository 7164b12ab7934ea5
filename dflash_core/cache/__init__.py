"""Paged memory: which blocks are whose (`blocks`) and which are found again (`prefix`), without torch; the tensors
behind them (`pools`)."""
