"""What the documents say about the code, compared with the code."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from deployments.settings import Settings, parse_settings, valid_keys

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/life-of-a-request.md",
    "docs/pools.md",
    "docs/reliability.md",
    "docs/scaling.md",
    "docs/security.md",
    "docs/tensor-parallel.md",
    "k8s/README.md",
    "cluster/bench/PROMPTS.md",
]


def _settings_table() -> list[tuple[str, str]]:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (none|`[^`]+`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows
    return [(key, default.strip("`")) for key, default in rows]


@pytest.mark.parametrize(("key", "default"), _settings_table())
def test_a_setting_of_the_readme_exists_with_its_default(key: str, default: str) -> None:
    full = f"{key}.model" if key in ("target", "drafter") else key
    assert full in dict(valid_keys())
    value: Any = reduce(getattr, full.split("."), Settings())
    assert str(getattr(value, "value", value)).lower() == default.lower()


def test_the_readme_s_commands_are_valid_settings() -> None:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"serve run deployments:app ((?:[a-z_.]+=[^\s…]+ *)+)", text)
    pairs = re.findall(r"`((?:[a-z]+\.[a-z_]+=\w+ ?)+)`", text)
    assert commands
    assert pairs
    for arguments in (*commands, *pairs):
        if "key=value" in arguments:
            continue
        parse_settings(dict(pair.split("=", 1) for pair in arguments.split()))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document: str) -> None:
    """Every link into the repository, and every path in backticks, leads somewhere."""
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    missing = [target for target in links if not (path.parent / target).exists()]
    names = re.findall(
        r"`((?:benchmarks|cluster|deployments|dflash_core|docs|k8s|protos|scripts|tests)/[\w/.-]+)`", text
    )
    missing += [name for name in names if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE))
    assert named
    assert not {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)}
