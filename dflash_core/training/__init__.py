"""Training of targets and drafters; `python -m dflash_core.training --help`."""
