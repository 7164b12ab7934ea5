"""The prompts of a benchmark: a user's own JSONL, or held-out excerpts of the standard library that ship with us."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dflash_core.errors import InvalidRequest


class Prompt(BaseModel):
    """One line of a prompts file. `source` says where the text is from and is not used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    source: str | None = None


def default_prompts() -> list[Prompt]:
    return parse_prompts((files("cluster.bench") / "prompts.jsonl").read_text(encoding="utf-8"), "prompts.jsonl")


def read_prompts(path: Path) -> list[Prompt]:
    """Raises `InvalidRequest` where the file cannot be read, or with the first wrong line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read the prompts file {path}: {error}") from error
    return parse_prompts(text, str(path))


def parse_prompts(text: str, name: str) -> list[Prompt]:
    """One prompt per line that is not blank. Raises `InvalidRequest` that names file and line."""
    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(Prompt.model_validate_json(line))
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in detail["loc"])
            what = f"{field}: {detail['msg']}" if field else detail["msg"]
            raise InvalidRequest(f"{name}, line {number}: {what}") from None
    if not prompts:
        raise InvalidRequest(f"{name} has no prompts")
    return prompts
