"""Prompts of a benchmark: files of a user's own, and those that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.bench.prompts import default_prompts, parse_prompts, read_prompts
from dflash_core.errors import InvalidRequest
from dflash_core.training.corpus import SourceFile


def test_default_prompts_are_from_files_that_no_training_saw() -> None:
    prompts = default_prompts()
    assert len(prompts) == 32
    for prompt in prompts:
        assert prompt.source is not None
        name = prompt.source.rpartition(":")[0]
        assert SourceFile(name, Path(name)).is_held_out, prompt.source


def test_blank_lines_and_max_tokens() -> None:
    prompts = parse_prompts('{"prompt": "a"}\n\n{"prompt": "b\\u2028", "max_tokens": 3}\n', "f")
    assert [(prompt.prompt, prompt.max_tokens) for prompt in prompts] == [("a", None), ("b\u2028", 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f has no prompts"),
        ('{"prompt": "a"}\nnot json\n', "f, line 2: Invalid JSON"),
        ('{"text": "a"}', "f, line 1: prompt: Field required"),
        ('{"prompt": ""}', "f, line 1: prompt: String should have at least 1 character"),
        ('{"prompt": "a", "max_token": 3}', "f, line 1: max_token: Extra inputs"),
        ('{"prompt": "a", "max_tokens": 0}', "f, line 1: max_tokens: Input should be greater"),
        ("[1]", "f, line 1: Input should be an object"),
    ],
)
def test_a_wrong_line_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_prompts(text, "f")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the prompts file .*nowhere\.jsonl"):
        read_prompts(tmp_path / "nowhere.jsonl")
