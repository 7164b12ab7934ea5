"""The training text: Python's standard library, with some files held out."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
HELD_OUT_ONE_IN = 40  # about 2.5 % of the files


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus. `name` is its path relative to the library, with forward slashes."""

    name: str
    path: Path

    @property
    def is_held_out(self) -> bool:
        """Decided by the name alone, so that the split is the same on every machine and for every release."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0

    def text(self) -> str:
        """The file's text; a few test files are not UTF-8 on purpose, their odd bytes are replaced."""
        return self.path.read_text(encoding="utf-8", errors="replace")


def standard_library() -> list[SourceFile]:
    """Every `.py` file of the running interpreter's standard library, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" not in name:
            files.append(SourceFile(name, path))
    return files


def encode(files: list[SourceFile], tokenizer: Tokenizer) -> npt.NDArray[np.uint16]:
    """All files as one token stream `[num_tokens]`, each file preceded by the end-of-text token."""
    if tokenizer.get_vocab_size() > 2**16:
        raise ValueError(f"vocabulary of {tokenizer.get_vocab_size()} tokens does not fit 16 bits")
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces = []
    for encoding in tokenizer.encode_batch([file.text() for file in files], add_special_tokens=False):
        pieces.append(np.asarray([end, *encoding.ids], dtype=np.uint16))
    return np.concatenate(pieces)
