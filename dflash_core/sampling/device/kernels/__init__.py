"""The Triton kernels; what launches them stands one folder up."""
