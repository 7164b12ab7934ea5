"""Choosing tokens and ranking candidates on a GPU, in Triton: the noise is made where it is added and never stored.

Every decision is taken on the device from tensors, nothing waits for it, and no shape depends on values: so
`torch.compile` and CUDA graphs take all of it.
"""
