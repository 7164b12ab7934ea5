"""Writes the benchmark's default prompts: excerpts of the standard library files that no training sees.

`python scripts/make_prompts.py TOKENIZER.json` rewrites cluster/bench/prompts.jsonl, the same for the same interpreter.
One excerpt of a file, from the start of a random line, of 24 to 80 tokens: the lengths that the drafter is judged on.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

from dflash_core.training.corpus import standard_library

OUTPUT = Path(__file__).resolve().parent.parent / "cluster" / "bench" / "prompts.jsonl"
NUM_PROMPTS = 32
SHORTEST, LONGEST = 24, 80  # tokens
SEED = 0


def excerpts(tokenizer: Tokenizer) -> list[dict[str, str]]:
    """`NUM_PROMPTS` excerpts of as many files, in random order. Raises ValueError where the files are too few."""
    chosen = random.Random(SEED)
    files = [file for file in standard_library() if file.is_held_out]
    chosen.shuffle(files)
    found = []
    for file in files:
        lines = file.text().splitlines(keepends=True)
        starts = [index for index, line in enumerate(lines) if line.strip()]
        if not starts:
            continue
        first = chosen.choice(starts)
        encoding = tokenizer.encode("".join(lines[first:]), add_special_tokens=False)
        if len(encoding.ids) < 2 * LONGEST:
            continue
        length = chosen.randint(SHORTEST, LONGEST)
        text = tokenizer.decode(encoding.ids[:length], skip_special_tokens=False)
        found.append({"prompt": text, "source": f"{file.name}:{first + 1}"})
        if len(found) == NUM_PROMPTS:
            return found
    raise ValueError(f"{NUM_PROMPTS} excerpts wanted, {len(found)} found in {len(files)} held-out files")


def main() -> None:
    rows = excerpts(Tokenizer.from_file(sys.argv[1]))
    OUTPUT.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"wrote {len(rows)} prompts to {OUTPUT}")


if __name__ == "__main__":
    main()
