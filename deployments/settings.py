"""The settings of a deployment: one frozen object that the builder validates and every replica gets a part of.

`parse_settings` takes what `serve run deployments:app key=value …` or the `args` of a config file hold: flat strings
with dotted keys, nested dictionaries, or both. No import here is heavier than pydantic: `dflash check-config` and the
builder read it before anything starts.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar

import click
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from cluster.requests import Strategy
from deployments.border_settings import LimitSettings, SecuritySettings
from deployments.pools import OptionalPath, PoolSettings, ScaledPoolSettings, SettingsSection, none_words
from dflash_core.errors import InvalidSettings
from dflash_core.runners.settings import DeviceName, DrafterSettings, TargetSettings

EMBEDDED_TARGET = "embedded:stdlib-6m"
EMBEDDED_DRAFTER = "embedded:stdlib-6m-dflash"


class SettingsError(InvalidSettings, click.ClickException, ValueError):
    """A wrong setting. The command line shows its one line and exits with 1; Python code can catch a ValueError."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.message = message

    def __str__(self) -> str:
        return self.message


OptionalPort = Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(none_words)]
OptionalBudget = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(none_words)]
OptionalShare = Annotated[Annotated[float, Field(ge=0)] | None, BeforeValidator(none_words)]


class GatewayPoolSettings(PoolSettings):
    """The ingress replicas."""

    drain_timeout_s: float = Field(
        20.0, ge=0, description="how long streams may go on at a gateway that is being stopped, Ctrl-C included"
    )


class RouterPoolSettings(ScaledPoolSettings):
    """The replicas that run the round loop, one per about four targets. Fields as `cluster.router.RouterSettings`."""

    scaling_fields: ClassVar[frozenset[str]] = ScaledPoolSettings.scaling_fields | {"rounds_per_replica"}

    rounds_per_replica: float = Field(
        8.0, gt=0, description="rounds in flight that one router should lead, where their number is automatic"
    )

    max_running: int = Field(64, ge=1, description="most sequences in one target's rounds")
    max_waiting: int = Field(256, ge=1, description="most sequences in a router's queue; beyond it requests get 429")
    queue_ms_per_token: float = Field(
        1.0,
        ge=0,
        description="by how much each prompt token not cached puts a request back; 0: first come first served",
    )
    prefill_chunk_tokens: int = Field(512, ge=1, description="most prompt tokens of one round, all sequences together")
    max_tree_nodes: int = Field(256, ge=1, description="most nodes of one tree where tree_budget is auto")
    min_tree_nodes: int = Field(
        0, ge=0, description="nodes of every tree where tree_budget is auto, even where they slow the others down"
    )
    learns_acceptance: bool = Field(
        True, description="score nodes by how often such nodes were accepted; false: by the drafter's probabilities"
    )
    learned_folder: OptionalPath = Field(
        None, description="folder that keeps what routers learned of a pair over restarts; none: it is learned anew"
    )
    micro_batches: int = Field(2, ge=1, le=2, description="most rounds in flight per target, where that pays")
    failover_timeout_s: float = Field(
        30.0, ge=0, description="how long sequences wait for a target after losing theirs"
    )
    round_timeout_ms: int = Field(
        60_000, ge=1, description="how long one round may take before its target counts as stuck"
    )

    @model_validator(mode="after")
    def _floor_below_cap(self) -> RouterPoolSettings:
        if self.min_tree_nodes > self.max_tree_nodes:
            raise ValueError(f"min_tree_nodes={self.min_tree_nodes} exceeds max_tree_nodes={self.max_tree_nodes}")
        return self


class ModelPoolSettings(ScaledPoolSettings):
    """What drafters and targets share."""

    scaling_fields: ClassVar[frozenset[str]] = ScaledPoolSettings.scaling_fields | {"sequences_per_replica"}

    sequences_per_replica: float = Field(
        32.0, gt=0, description="sequences, those in queues too, that one replica should have; for an automatic number"
    )

    model: str = Field(min_length=1, description="a folder, a name in the local Hugging Face cache, or embedded:NAME")
    device: DeviceName = Field("auto", description="auto (the cluster's GPUs where it has any), cpu or cuda")
    num_gpus: OptionalShare = Field(
        None,
        description="GPU share of one replica, or of each rank of one; none: a whole one, or a part where GPUs are few",
    )


class DrafterPoolSettings(ModelPoolSettings, DrafterSettings):
    """The drafter pool: the runner's settings and where it runs."""

    scaling_fields: ClassVar[frozenset[str]] = ModelPoolSettings.scaling_fields | {"max_lag_ms"}

    model: str = Field(EMBEDDED_DRAFTER, min_length=1, description="the drafter's checkpoint")
    num_cpus: float = Field(0.3, ge=0, description="CPU share that Ray reserves for one replica")
    sequences_per_replica: float = Field(
        64.0, gt=0, description="sequences, those in queues too, that one drafter should have; for an automatic number"
    )
    max_lag_ms: float = Field(
        20.0, gt=0, description="how long drafts may wait for the model; beyond it an automatic pool grows by one"
    )


class TargetPoolSettings(ModelPoolSettings, TargetSettings):
    """The target pool: the runner's settings and where it runs."""

    model: str = Field(EMBEDDED_TARGET, min_length=1, description="the target's checkpoint")
    num_cpus: float = Field(0.4, ge=0, description="CPU share that Ray reserves for one replica, or each rank of one")

    @model_validator(mode="after")
    def _a_gpu_for_each_rank(self) -> TargetPoolSettings:
        if self.tensor_parallel > 1 and self.num_gpus is not None and 0 < self.num_gpus <= 0.5:
            raise ValueError(
                f"num_gpus={self.num_gpus:g} may put two of tensor_parallel={self.tensor_parallel} ranks on one GPU: "
                "set more than 0.5"
            )
        return self


class Settings(SettingsSection):
    """Everything that `serve run deployments:app` takes."""

    target: TargetPoolSettings = Field(default_factory=TargetPoolSettings)
    drafter: DrafterPoolSettings = Field(default_factory=DrafterPoolSettings)
    router: RouterPoolSettings = Field(default_factory=RouterPoolSettings)
    gateway: GatewayPoolSettings = Field(default_factory=GatewayPoolSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    served_model_name: str | None = Field(
        None, min_length=1, description="what clients call the model; none: from target.model"
    )
    strategy: Strategy = Field(Strategy.DRAFT_TREES, description="block_diffusion_draft_trees, block_diffusion or none")
    tree_budget: OptionalBudget = Field(
        None, description="draft tree nodes per sequence and round, without the root; auto: as many as pay at the load"
    )
    http_host: str | None = Field(
        None,
        min_length=1,
        description="where HTTP listens; none: Ray Serve's default; a config file has http_options for it",
    )
    http_port: int = Field(8000, ge=1, le=65535, description="HTTP port; a config file has http_options for it")
    grpc_port: OptionalPort = Field(
        9000, description="gRPC port, off or 0 for none; a config file has grpc_options for it"
    )
    data_plane_ports: str = Field("20000-20999", description="ports, FIRST-LAST, for the streams between replicas")
    data_plane_host: str | None = Field(
        None,
        min_length=1,
        description="where those listen; none: the node's address; 127.0.0.1 on a single machine",
    )

    @field_validator("data_plane_ports")
    @classmethod
    def _port_range(cls, value: str) -> str:
        first, dash, last = value.partition("-")
        if not (dash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 65535):
            raise ValueError(f"must be FIRST-LAST within 1-65535, got {value!r}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.tree_budget is None:
            return self
        if self.tree_budget > self.limits.max_tree_budget:
            raise ValueError(
                f"tree_budget={self.tree_budget} exceeds limits.max_tree_budget={self.limits.max_tree_budget}"
            )
        if self.tree_budget + 1 > self.target.max_tree_rows:
            raise ValueError(
                f"a tree of tree_budget={self.tree_budget} nodes and its root does not fit "
                f"target.max_tree_rows={self.target.max_tree_rows}"
            )
        return self

    @property
    def model_name(self) -> str:
        """What clients call the model: the setting, or the last part of a path, or the name of the checkpoint."""
        if self.served_model_name is not None:
            return self.served_model_name
        name = self.target.model.removeprefix("embedded:")
        path = PurePath(name)
        return path.name if path.is_absolute() or name.startswith((".", "~")) else name

    @property
    def uses_drafter(self) -> bool:
        return self.strategy is not Strategy.NONE

    @property
    def port_range(self) -> range:
        first, last = self.data_plane_ports.split("-")
        return range(int(first), int(last) + 1)


def parse_settings(arguments: Mapping[str, Any]) -> Settings:
    """Validates arguments. Raises `SettingsError` with one line that names each wrong key or value."""
    try:
        return Settings.model_validate(_expand(arguments))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        message = "; ".join(_describe(detail) for detail in details)
        raise SettingsError(message, param=_dotted(details[0]["loc"])) from None


def valid_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields every dotted key with its description, in the order of the fields."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from valid_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def _expand(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Turns dotted keys into nested dictionaries, and `target=X` into `target.model=X`."""
    nested: dict[str, Any] = {}
    for key, value in arguments.items():
        _insert(nested, key.split("."), value, key)
    return nested


def _insert(nested: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    if path in (["target"], ["drafter"]) and isinstance(value, str):
        path = [path[0], "model"]
    for part in path[:-1]:
        nested = nested.setdefault(part, {})
        if not isinstance(nested, dict):
            raise SettingsError(f"setting {key!r} contradicts another one: {part!r} already has a value", param=key)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _insert(nested, [path[-1], str(name)], inner, f"{key}.{name}")
    elif path[-1] in nested:
        raise SettingsError(f"setting {key!r} is given twice: {nested[path[-1]]!r} and {value!r}", param=key)
    else:
        nested[path[-1]] = value


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _describe(detail: ErrorDetails) -> str:
    key = _dotted(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown setting {key!r}; did you mean {_nearest(key)!r}?"
    message = detail["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if detail["type"] == "model_type":
        return f"setting {key!r} takes values of its own (for example {_nearest(key + '.')!r}), got {detail['input']!r}"
    return f"setting {key!r}: {message}" + ("" if detail["type"] == "value_error" else f", got {detail['input']!r}")


def _nearest(key: str) -> str:
    """The valid key most like `key`; its parts count too, so that `tensor_paralel` finds `target.tensor_parallel`."""
    keys = [name for name, _ in valid_keys()]
    sections = [name for name, field in Settings.model_fields.items() if _is_section(field.annotation)]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, 0.99 * last if "." not in key else 0.0)

    return max([*sections, *keys] if "." not in key else keys, key=likeness)


def _is_section(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType):
        return any(_is_section(part) for part in typing.get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
