"""Ragged attention on a GPU, in Triton: a work list once per round, then split-KV attention and a combine per layer.

Nothing here waits for the device or reads from it, so `torch.compile` and CUDA graphs take all of it.
"""
