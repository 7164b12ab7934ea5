"""Paged memory: which blocks are whose (`blocks`, without torch), and the tensors behind them (`pools`)."""
