"""Ranks as processes of this machine, where there is no Ray to place them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from dflash_core.parallel.group import WorkerSpec
from dflash_core.parallel.worker import SPEC

_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02


class ProcessWorkers:
    """Implements `Workers`. Each ends when its standard input does: at the latest with this process."""

    def __init__(self, specs: Sequence[WorkerSpec]) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._processes = [_start(spec, environment) for spec in specs]

    def ended(self, patience_s: float) -> tuple[int, str] | None:
        deadline = time.monotonic() + patience_s
        while True:
            for tp_rank, process in enumerate(self._processes, start=1):
                if (code := process.poll()) is not None:
                    return tp_rank, f"ended with exit code {code}"
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(_STOP_TIMEOUT_S)
            if process.stdin is not None:
                process.stdin.close()


class ProcessLauncher:
    """Implements `Launcher`."""

    host = "127.0.0.1"
    sees_all_gpus = True

    def launch(self, specs: Sequence[WorkerSpec]) -> ProcessWorkers:
        return ProcessWorkers(specs)


def _start(spec: WorkerSpec, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dflash_core.parallel.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write(SPEC.dump_json(spec) + b"\n")
    process.stdin.flush()
    return process
