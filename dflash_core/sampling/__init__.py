"""The choice of the next token, a pure function of logits, parameters, seed and position (ARCHITECTURE section 1).

`noise` is numpy alone and may be imported by the router; `rows`, `choose` and `candidates` need torch. Nothing is
imported here, so that `dflash_core.sampling.noise` stays free of torch.
"""
