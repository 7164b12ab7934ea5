"""`dflash generate`: one streamed generation in this process."""

from __future__ import annotations

from cluster.engine import LLMInferenceEngine
from cluster.outputs import DecodingOptions
from cluster.requests import Strategy
from cluster.router import RoundTimings
from deployments.cli.console import note_line, write_piece
from deployments.cli.options import ModelPair, RequestOptions
from dflash_core.embedded import TARGET_NAME


def generate_text(
    prompt: str, *, target: str | None, drafter: str | None, strategy: Strategy, options: RequestOptions, stats: bool
) -> None:
    """Raises what the engine raises; `InvalidSettings` for a target of one's own without its drafter."""
    if strategy is Strategy.NONE:
        target, drafter = target or TARGET_NAME, None
    else:
        pair = ModelPair.of(target, drafter)
        target, drafter = pair.target, pair.drafter
    decoding: DecodingOptions = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "stop": options.stop,
    }
    if options.seed is not None:
        decoding["seed"] = options.seed
    if options.tree_budget is not None:
        decoding["tree_budget"] = options.tree_budget
    with LLMInferenceEngine(target, drafter, strategy) as engine:
        for piece in engine.stream(prompt, options.max_tokens, **decoding):
            write_piece(piece)
        write_piece("\n")
        if stats:
            _note_timings(engine.timings)


def _note_timings(timings: RoundTimings) -> None:
    stages = ", ".join(f"{name} {stage.total_us / 1e3:.0f} ms" for name, stage in sorted(timings.stages.items()))
    note_line(
        f"{timings.output_tokens} tokens in {timings.rounds} rounds, {timings.tree_nodes} tree nodes verified; {stages}"
    )
