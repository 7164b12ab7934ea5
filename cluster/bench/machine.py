"""On what a benchmark ran: enough to repeat it."""

from __future__ import annotations

import os
import platform
import shutil
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
        "gpu_memory_gib": _gpu_memory_gib(),
        "cuda": torch.version.cuda,
        "commit": _commit(),
    }
    return described | {f"{name} version": _version(name) for name in _LIBRARIES}


def _gpu_memory_gib() -> float | None:
    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.get_device_properties().total_memory / 2**30, 1)


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
    """The commit of the checkout this code lies in, "+changes" where files differ.

    Of a copy without its history it is what the environment says in `DFLASH_COMMIT`, else None.
    """
    head = _git("rev-parse", "HEAD")
    if head is None:
        return os.environ.get("DFLASH_COMMIT")
    return f"{head}+changes" if _git("status", "--porcelain") else head


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where there is no history, no git, or git refuses to read it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
