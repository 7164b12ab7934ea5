"""`dflash bench`: the same weights, prompts and machine decoded in several ways, interleaved, in one run."""
