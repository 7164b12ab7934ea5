"""Ways between router, targets, drafters and gateways: in process, and over gRPC streams.

Each implements the protocols of `dflash_core.contracts` or serves them; none decides anything.
"""
