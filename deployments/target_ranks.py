"""The ranks of a tensor-parallel target as actors, one in each bundle of its replica's placement group but the first.

An actor ends with the replica that made it: no rank is left behind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dflash_core.errors import InvalidSettings

if TYPE_CHECKING:
    from dflash_core.parallel.group import WorkerSpec

logger = logging.getLogger(__name__)


class Rank:
    """A process for one rank."""

    def run(self, spec_json: bytes) -> None:
        """Ends with an error alone, and with it the process: as long as that lives, other ranks wait for this one."""
        # Here, since these bring torch: the builder imports this module too.
        from dflash_core.parallel.worker import SPEC, run_worker

        try:
            run_worker(SPEC.validate_json(spec_json))
        except Exception:
            logger.exception("a rank ends")
        finally:
            os._exit(1)


class ActorWorkers:
    """Implements `dflash_core.parallel.group.Workers`."""

    def __init__(self, specs: Sequence[WorkerSpec], options: Mapping[str, Any]) -> None:
        from dflash_core.parallel.worker import SPEC

        group = ray.util.get_current_placement_group()
        if group is None:
            raise InvalidSettings(f"a target over {len(specs) + 1} ranks needs a placement group of as many bundles")
        self._actors = []
        for bundle in range(1, len(specs) + 1):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            self._actors.append(ray.remote(Rank).options(**options, scheduling_strategy=place).remote())
        self._runs = [actor.run.remote(SPEC.dump_json(spec)) for actor, spec in zip(self._actors, specs, strict=True)]

    def ended(self, patience_s: float) -> tuple[int, str] | None:
        done, _ = ray.wait(self._runs, num_returns=1, timeout=patience_s)
        if not done:
            return None
        try:
            ray.get(done[0])
        except RayError as error:
            return self._runs.index(done[0]) + 1, f"ended with {type(error).__name__}"
        raise AssertionError("a rank's run has no other end than an error")

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


class ActorLauncher:
    """Implements `dflash_core.parallel.group.Launcher`."""

    sees_all_gpus = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options`: what Ray reserves for each rank."""
        self._options = options

    @property
    def host(self) -> str:
        address: str = ray.util.get_node_ip_address()
        return address

    def launch(self, specs: Sequence[WorkerSpec]) -> ActorWorkers:
        return ActorWorkers(specs, self._options)
