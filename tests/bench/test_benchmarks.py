"""The benchmarks of parts run at small sizes on a CPU, and their arms agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_attention(tmp_path: Path) -> None:
    found, picture = tmp_path / "found.json", tmp_path / "found.png"
    command = [sys.executable, "-m", "benchmarks.attention", "--json", str(found), "--plot", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(found.read_text())
    assert report["machine"]["torch version"]
    assert len(report["results"]) == 8
    for result in report["results"]:
        assert result["error"] < 1e-6
        assert all(result["ms"][arm] > 0 for arm in ("ours", "sdpa", "flex", "copy"))
    assert picture.stat().st_size > 1000
