"""Loads a pair once and makes every arm of a benchmark from it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from cluster.bench.arms import Arm, ArmKind
from cluster.bench.hugging_face import HuggingFaceDecoder
from cluster.bench.router_decoder import RouterDecoder
from cluster.bench.samples import Decoder
from cluster.bench.turns import Gate, GatedDrafter, GatedTarget, Lane, StandingLoop
from cluster.loading import load_tokenizer
from cluster.router import Router
from cluster.transports.in_process import InProcessContextSink, InProcessDrafter, InProcessTarget
from dflash_core.models.checkpoints import resolve_checkpoint
from dflash_core.runners.devices import pick_device, pick_dtype
from dflash_core.runners.drafter import DrafterRunner
from dflash_core.runners.settings import DeviceName, DrafterSettings, DtypeName, TargetSettings
from dflash_core.runners.target import TargetRunner

_CPU_CACHE_BYTES = 1 << 30  # of target and drafter each: arms that take turns have sequences at the same time


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which pair, and how it runs: the same for every arm.

    one_thread: drafter and target take turns, as in `LLMInferenceEngine`; else each has a thread, and one works while
        the other does, as in the cluster, where they are processes. num_threads: of each.
    """

    target: str
    drafter: str
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    num_threads: int = 1
    one_thread: bool = False


class BenchModels:
    """Target and drafter, and the threads on which they run.

    All arms of ours share one target runner. A drafter that ranks without the shared noise is a second runner of the
    same checkpoint.
    """

    def __init__(self, options: ModelOptions) -> None:
        """Raises what loading raises: `CheckpointNotFound`, `CheckpointMismatch`, `UnsupportedModel`, …"""
        self._options = options
        shared: dict[str, Any] = {
            "device": options.device,
            "dtype": options.dtype,
            "num_threads": options.num_threads,
        }
        if pick_device(options.device).type == "cpu":
            shared["kv_cache_bytes"] = _CPU_CACHE_BYTES
        self.tokenizer = load_tokenizer(options.target)
        # Arms decode the same prompts one after the other: each must compute them all.
        target_settings = TargetSettings.model_validate({**shared, "prefix_caching": False})
        self._target = TargetRunner.load(options.target, options.drafter, target_settings)
        self._drafter_settings = DrafterSettings.model_validate(shared)
        self._target_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="target")
        self._drafter_thread = (
            self._target_thread
            if options.one_thread
            else ThreadPoolExecutor(max_workers=1, thread_name_prefix="drafter")
        )
        self._drafter_runners: list[DrafterRunner] = []
        self._drafters = {True: self._load_drafter(uses_noise=True)}
        self._routers: dict[Arm, Router] = {}
        self._lanes: dict[Arm, Lane] = {}

    @property
    def max_model_len(self) -> int:
        return self._target.info.max_model_len

    @property
    def draft_depth(self) -> int:
        return self._drafters[True].info.draft_block_size - 1

    def lanes(self, arms: Iterable[Arm]) -> dict[Arm, Lane]:
        """One per arm. Call it once."""
        wanted = list(dict.fromkeys(arms))
        for arm in wanted:
            if arm.uses_noise not in self._drafters:
                self._drafters[arm.uses_noise] = self._load_drafter(arm.uses_noise)
        target = InProcessTarget(self._target, InProcessContextSink(*self._drafters.values()), self._target_thread)
        for arm in wanted:
            loop, gate = StandingLoop(), Gate()
            decoder = loop.run_until_complete(self._decoder(arm, target, gate))
            self._lanes[arm] = Lane(loop, gate, decoder, (self._target_thread, self._drafter_thread))
        return dict(self._lanes)

    async def _decoder(self, arm: Arm, target: InProcessTarget, gate: Gate) -> Decoder:
        if arm.kind is ArmKind.HUGGING_FACE:
            device = pick_device(self._options.device)
            return HuggingFaceDecoder(
                resolve_checkpoint(self._options.target),
                pick_dtype(self._options.dtype, device),
                device,
                self._target.info.eos_token_ids,
                self._target_thread,
                gate,
            )
        settings = arm.router_settings
        if self._options.one_thread:  # then a drafter is never a straggler
            settings = replace(settings, draft_timeout_ms=settings.round_timeout_ms, always_waits=True)
        router = self._routers[arm] = Router(settings)
        router.add_target(GatedTarget(target, gate))
        if arm.kind is not ArmKind.PLAIN:
            router.add_drafter(GatedDrafter(self._drafters[arm.uses_noise], gate))
        return RouterDecoder(router, self._target.info.eos_token_ids, f"{arm.name} ")

    def _load_drafter(self, uses_noise: bool) -> InProcessDrafter:
        settings = self._drafter_settings.model_copy(update={"shared_noise": uses_noise})
        runner = DrafterRunner.load(self._options.drafter, self._options.target, settings)
        self._drafter_runners.append(runner)
        return InProcessDrafter(runner, self._drafter_thread, f"in-process, shared noise {uses_noise}")

    def has_room_for(self, num_sequences: int, num_tokens: int) -> bool:
        """Whether so many sequences of so many tokens each can be open at a time."""
        return all(
            num_sequences * -(-num_tokens // size) <= free_blocks
            for size, free_blocks in (
                (self._target.info.kv_block_size, self._target.free_blocks),
                *((runner.kv_block_size, runner.free_blocks) for runner in self._drafter_runners),
            )
        )

    def close(self) -> None:
        for arm, lane in self._lanes.items():
            lane.close(self._routers[arm].close() if arm in self._routers else None)
        self._target_thread.shutdown()
        self._drafter_thread.shutdown()
        self._target.close()
