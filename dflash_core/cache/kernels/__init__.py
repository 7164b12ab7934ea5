"""Triton kernels of the caches."""
