"""The settings that every pool has: how many replicas, on which nodes, and what Ray reserves for each.

The number is fixed (`num_replicas`), or automatic: `max_replicas` makes it so, and `deployments/scaling.py` says how.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Node labels as Ray takes them: a name or domain/name as the key; one value or in(…), both may be negated by "!".
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_SELECTOR = re.compile(rf"!?{_NAME}|!?in\({_NAME}(?:, ?{_NAME})*\)")
_COMMA_OUTSIDE_PARENTHESES = re.compile(r",(?![^(]*\))")


def none_words(value: Any) -> Any:
    """On the command line a value is a string: "none", "off" and "auto" stand for None."""
    return None if isinstance(value, str) and value.lower() in ("none", "off", "null", "auto") else value


def _labels_of_words(value: Any) -> Any:
    """`key=value,key=in(value,value)`, as Ray's own command line writes labels; a mapping stays."""
    if not isinstance(value, str):
        return value
    labels: dict[str, str] = {}
    for word in _COMMA_OUTSIDE_PARENTHESES.split(value):
        key, equals, selector = word.strip().partition("=")
        if not equals or key in labels:
            raise ValueError(f"must be KEY=VALUE,KEY=VALUE with different keys, got {value!r}")
        labels[key] = selector
    return labels


def _check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    for key, selector in labels.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not the name of a node label, as pool or example.com/pool")
        if not _SELECTOR.fullmatch(selector):
            raise ValueError(f"label {key!r} must be VALUE, !VALUE, in(A,B) or !in(A,B), got {selector!r}")
    return labels


OptionalCount = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(none_words)]
OptionalPath = Annotated[Path | None, BeforeValidator(none_words)]
Labels = Annotated[dict[str, str], BeforeValidator(_labels_of_words), AfterValidator(_check_labels)]


class SettingsSection(BaseModel):
    """A part of the settings: nothing unknown, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolSettings(SettingsSection):
    """What every kind of replica has."""

    num_replicas: int = Field(1, ge=1, description="replicas of this kind")
    num_cpus: float = Field(0.1, ge=0, description="CPU share that Ray reserves for one replica")
    resources: dict[str, float] = Field(default_factory=dict, description="custom Ray resources of one replica")
    labels: Labels = Field(
        default_factory=dict,
        description="labels of the nodes where replicas may run: KEY=VALUE,KEY=in(A,B); VALUE may be negated by !",
    )
    memory_mib: OptionalCount = Field(None, description="memory that Ray reserves for one replica")

    @property
    def most_replicas(self) -> int:
        return self.num_replicas


class ScaledPoolSettings(PoolSettings):
    """A pool whose number of replicas may be automatic."""

    # What says how the number is found, and so says nothing where it is fixed.
    scaling_fields: ClassVar[frozenset[str]] = frozenset({"min_replicas", "scale_up_after_s", "scale_down_after_s"})

    min_replicas: OptionalCount = Field(None, description="fewest replicas where their number is automatic; none: 1")
    max_replicas: OptionalCount = Field(None, description="most replicas; makes their number automatic, by the load")
    scale_up_after_s: float = Field(10.0, ge=0, description="how long more replicas must be wanted before they start")
    scale_down_after_s: float = Field(300.0, ge=0, description="how long fewer must be wanted before any is stopped")

    @model_validator(mode="after")
    def _fixed_or_automatic(self) -> ScaledPoolSettings:
        given = self.model_fields_set
        if self.max_replicas is None:
            useless = [name for name in type(self).model_fields if name in given & self.scaling_fields]
            if useless and getattr(self, useless[0]) is not None:
                raise ValueError(f"{useless[0]}={getattr(self, useless[0])} needs max_replicas: the number is fixed")
            return self
        if "num_replicas" in given:
            raise ValueError(
                f"num_replicas={self.num_replicas} is fixed and max_replicas={self.max_replicas} automatic: give one"
            )
        if self.fewest_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} exceeds max_replicas={self.max_replicas}")
        return self

    @property
    def is_automatic(self) -> bool:
        return self.max_replicas is not None

    @property
    def fewest_replicas(self) -> int:
        """Of an automatic pool."""
        return self.min_replicas or 1

    @property
    def most_replicas(self) -> int:
        return self.max_replicas or self.num_replicas
