"""`python -m benchmarks.simulate.markdown FOUND.json DOC.md`: writes the figures of a run into a document's tables.

A table stands between two comments, the first of which says what it shows, a measure for each scenario and policy:

    <!-- table load: tokens/s -->
    …
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from benchmarks.command import run
from benchmarks.simulate.finding import Finding
from benchmarks.simulate.report import COLUMNS
from dflash_core.errors import InvalidRequest

_TABLE = re.compile(r"(<!-- table ([^:\n]+): ([^\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(
    found: Annotated[Path, typer.Argument(help="A JSON of `python -m benchmarks.simulate`.", exists=True)],
    document: Annotated[Path, typer.Argument(help="Whose tables are replaced.", exists=True)],
) -> None:
    document.write_text(fill(document.read_text(encoding="utf-8"), read_findings(found)), encoding="utf-8")


def read_findings(path: Path) -> list[Finding]:
    """Raises `InvalidRequest` for a file that is not of this benchmark."""
    try:
        return TypeAdapter(list[Finding]).validate_python(json.loads(path.read_text(encoding="utf-8"))["results"])
    except (ValidationError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{path} is no result of benchmarks.simulate: {error}") from None


def fill(text: str, findings: Sequence[Finding]) -> str:
    """The document with the findings' figures in its tables. Raises `InvalidRequest` where a table wants others."""
    return _TABLE.sub(lambda match: match[1] + _table(match[2], match[3], findings) + match[4], text)


def _table(group: str, measure: str, findings: Sequence[Finding]) -> str:
    mine = [found for found in findings if found.group == group]
    if not mine or measure not in COLUMNS:
        raise InvalidRequest(f"no figures for a table of {measure!r} in group {group!r}")
    policies = list(dict.fromkeys(found.policy for found in mine))
    cells = {(found.scenario, found.policy): COLUMNS[measure](found) for found in mine}
    rows = [["", *policies], ["---", *("---:" for _ in policies)]]
    for scenario in dict.fromkeys(found.scenario for found in mine):
        rows.append([scenario, *(cells.get((scenario, policy), "–") for policy in policies)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    run(main)
