"""The commands of `dflash` with their options. Nothing heavier than typer is imported before a command runs."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.requests import HIGHEST_PRIORITY, LOWEST_PRIORITY, LatencyClass, Strategy
from deployments.cli.options import ModelPair, RequestOptions
from dflash_core.errors import DFlashError

app = typer.Typer(
    name="dflash",
    help="Decode with block-diffusion draft trees: in this process, against a server, or as a benchmark.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Transport(StrEnum):
    HTTP = "http"
    GRPC = "grpc"


Target = Annotated[str | None, typer.Option(help="Target checkpoint; default: the embedded one.")]
Drafter = Annotated[str | None, typer.Option(help="Drafter checkpoint; default: the embedded one.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens to write.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.")]
MinP = Annotated[float, typer.Option(help="Keep tokens of at least this part of the likeliest one's probability.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Same seed, same text. Drawn when it is absent.")]
TreeBudget = Annotated[int | None, typer.Option(min=0, help="Draft tree nodes a round; 0 decodes plainly.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be given up to 4 times.")]
Priority = Annotated[
    int,
    typer.Option(
        min=HIGHEST_PRIORITY,
        max=LOWEST_PRIORITY,
        show_default="0",
        help="Of the requests that wait, a lower number goes first.",
    ),
]
Urgency = Annotated[LatencyClass, typer.Option(help="Of one priority, the more urgent class goes first.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say, on stderr, what took how much memory.")]
ShowStatistics = Annotated[bool, typer.Option("--stats", help="Say afterwards, on stderr, how it was decoded.")]


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"dflash-serve {installed('dflash-serve')}")
        raise typer.Exit


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from stdin.")],
    target: Target = None,
    drafter: Drafter = None,
    strategy: Annotated[Strategy, typer.Option(help="How to speculate.")] = Strategy.DRAFT_TREES,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    tree_budget: TreeBudget = None,
    stats: ShowStatistics = False,
    verbose: Verbose = False,
) -> None:
    """Continue a prompt in this process, without a server."""
    from deployments.cli.generate import generate_text

    if verbose:
        from deployments.cli.console import show_log

        show_log()
    generate_text(
        _prompt(prompt),
        target=target,
        drafter=drafter,
        strategy=strategy,
        options=RequestOptions(max_tokens, temperature, top_k, top_p, min_p, seed, tree_budget),
        stats=stats,
    )


@app.command()
def complete(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from stdin.")],
    transport: Annotated[Transport, typer.Option(help="How to reach the server.")] = Transport.HTTP,
    server: Annotated[str | None, typer.Option(help="http://127.0.0.1:8000 or, for gRPC, 127.0.0.1:9000.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the model that is served.")] = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    tree_budget: TreeBudget = None,
    priority: Priority = 0,
    latency_class: Urgency = LatencyClass.STANDARD,
    stats: ShowStatistics = False,
) -> None:
    """Continue a prompt on a running server, with the API key of the environment variable DFLASH_API_KEY, if any."""
    from deployments.cli.complete import complete_over_grpc, complete_over_http

    options = RequestOptions(
        max_tokens,
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        tree_budget,
        tuple(stop or ()),
        priority,
        latency_class,
    )
    if transport is Transport.GRPC:
        complete_over_grpc(_prompt(prompt), server or "127.0.0.1:9000", model, options, stats)
    else:
        complete_over_http(_prompt(prompt), server or "http://127.0.0.1:8000", model, options, stats)


@app.command()
def bench(
    target: Target = None,
    drafter: Drafter = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL with a prompt a line; default: held-out standard library.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Use the first so many prompts.")] = None,
    max_tokens: MaxTokens = 128,
    tree_budget: Annotated[list[int], typer.Option(min=1, help="Sizes of trees; may be repeated.")] = [8, 16, 32, 64],  # noqa: B006
    concurrency: Annotated[list[int], typer.Option(min=1, help="Requests at a time; may be repeated.")] = [1, 8],  # noqa: B006
    temperature: Annotated[list[float], typer.Option(min=0.0, help="May be repeated.")] = [0.0, 1.0],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 1,
    max_prompts: Annotated[
        int | None, typer.Option(min=1, help="Most prompts at one concurrency, but at least a group; default: all.")
    ] = None,
    references: Annotated[
        Literal["all", "published", "none"],
        typer.Option(help="Also measure Hugging Face generate, trees of raw scores and the published method."),
    ] = "all",
    seed: Annotated[int, typer.Option(min=0, help="Of the sampled outputs.")] = 0,
    num_threads: Annotated[int, typer.Option(min=1, help="CPU threads of each model.")] = 1,
    one_thread: Annotated[
        bool,
        typer.Option("--one-thread", help="Let target and drafter take turns; default: a thread each."),
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the models run.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="In what the models compute.")
    ] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all findings here.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Write a picture (PNG) here.")] = None,
    trace_file: Annotated[
        Path | None, typer.Option("--trace", help="Write a timeline of the last repeat here, for Perfetto.")
    ] = None,
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0.0, help="Price of an hour of this machine: adds what a million tokens cost.")
    ] = None,
) -> None:
    """Measure plain decoding, chains, fixed and adaptive trees on the same prompts, in turns."""
    from cluster.bench.arms import References
    from cluster.bench.benchmark import BenchSettings
    from cluster.bench.models import ModelOptions
    from cluster.bench.session import Outputs
    from deployments.cli.bench import run_bench

    pair = ModelPair.of(target, drafter)
    settings = BenchSettings(
        models=ModelOptions(pair.target, pair.drafter, device, dtype, num_threads, one_thread),
        tree_budgets=tuple(tree_budget),
        concurrencies=tuple(concurrency),
        temperatures=tuple(temperature),
        max_tokens=max_tokens,
        repeats=repeats,
        max_prompts=max_prompts,
        references=References(references),
        seed=seed,
    )
    run_bench(settings, prompts, num_prompts, Outputs(json_file, plot_file, trace_file, gpu_hour_price))


@app.command("check-config")
def check_config(
    file: Annotated[Path, typer.Argument(help="A config file for `serve run` or `serve deploy`.")],
) -> None:
    """Check a Serve config file: its keys, its values, and that its checkpoints are there and belong together."""
    from deployments.cli.check import check_file

    check_file(file)


def _prompt(argument: str) -> str:
    return sys.stdin.read() if argument == "-" else argument


def run() -> None:
    """Runs the command line. A known error is one line on stderr and exit code 1; Ctrl-C exits with 130."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries draw their own progress bars, anywhere
    try:
        app()
    except DFlashError as error:
        from deployments.cli.console import error_line

        error_line(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away. Nothing is left to say, not even at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
