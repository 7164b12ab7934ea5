"""`run_worker`: a rank other than 0. `python -m dflash_core.parallel.worker` reads what it must know from its standard
input, and ends when that does: with the process that started it.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

from pydantic import TypeAdapter
from torch._C._distributed_c10d import TCPStore  # what torch.distributed re-exports, unseen by mypy

from dflash_core.errors import DFlashError
from dflash_core.parallel.group import WorkerSpec
from dflash_core.parallel.leading import follow
from dflash_core.parallel.ranks import Ranks, fault_key, join_store
from dflash_core.runners.devices import pick_device
from dflash_core.runners.target_assembly import assemble
from dflash_core.runners.target_loading import load_target_parts

SPEC = TypeAdapter(WorkerSpec)


def run_worker(spec: WorkerSpec) -> None:
    """Loads this rank's part of the target and follows rank 0, for ever. Raises what loading raises, after rank 0 was
    told, and `RuntimeError` once rank 0 is gone."""
    tp_rank = spec.rendezvous.tp_rank
    store = join_store(spec.rendezvous)
    try:
        _run(spec, store)
    except Exception as error:
        with suppress(RuntimeError):  # rank 0 is gone, and its store
            store.set(fault_key(tp_rank), error.message if isinstance(error, DFlashError) else repr(error))
        raise


def _run(spec: WorkerSpec, store: TCPStore) -> None:
    settings = spec.settings
    ranks = Ranks(store, spec.rendezvous, pick_device(settings.device))
    parts = load_target_parts(spec.target, None, settings, ranks)
    assembly = assemble(parts.model, None, settings, name=spec.target, vocab_size=parts.vocab_size, ranks=ranks)
    follow(assembly.target_pass, ranks, settings.kv_block_size, assembly.model.device)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # whatever the main thread waits for


def main() -> None:
    spec = SPEC.validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        run_worker(spec)
    except Exception as error:
        print(f"rank {spec.rendezvous.tp_rank} of {spec.target} ends: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # threads of torch.distributed that still run would abort an orderly end


if __name__ == "__main__":
    main()
