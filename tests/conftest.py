"""What every test runs under. Set before anything imports torch, numba or ray, and inherited by child processes."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # else ray.init() writes a token file into the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # two busy cores and two threads make a forward hundreds of times slower
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # a test that would download fails instead
    "TRANSFORMERS_OFFLINE": "1",
    "MPLBACKEND": "agg",
}
os.environ.update(ENVIRONMENT)
