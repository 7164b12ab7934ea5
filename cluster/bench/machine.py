"""On what a benchmark ran: enough to repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

_LIBRARIES = ("dflash-serve", "torch", "triton", "transformers", "numpy", "numba")


def describe_machine() -> dict[str, str | int | float | None]:
    described: dict[str, str | int | float | None] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1m": os.getloadavg()[0],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }
    return described | {f"{name} version": _version(name) for name in _LIBRARIES}


def _version(name: str) -> str | None:
    """None where it is not installed: this project itself, where it runs from its checkout."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The model name of the first core; the plain architecture where the kernel does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """The commit of the checkout this code lies in, "+changes" where files differ; None when it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    return f"{head}+changes" if changes.strip() else head
