"""Generates the stubs of `protos/*.proto` beside them; with `--check`, only compares and fails where they differ.

The generator is older than the oldest protobuf and grpcio runtimes in use, so the stubs load everywhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(output: Path) -> None:
    """Writes messages, services and their type stubs under `output`/protos. Raises RuntimeError when protoc fails."""
    sources = sorted((ROOT / "protos").glob("*.proto"))
    services = [path for path in sources if "\nservice " in path.read_text(encoding="utf-8")]
    run_protoc(sources, f"--python_out={output}", f"--mypy_out=quiet:{output}")
    run_protoc(services, f"--grpc_python_out={output}", f"--mypy_grpc_out=quiet:{output}")


def run_protoc(sources: list[Path], *outputs: str) -> None:
    well_known = files("grpc_tools") / "_proto"
    names = [path.relative_to(ROOT).as_posix() for path in sources]
    # The plugins lie beside the interpreter, which need not be on the PATH.
    tools = Path(sys.executable).parent
    plugins = [f"--plugin={name}={tools / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    status = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *plugins, *outputs, *names])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


def stubs(folder: Path) -> dict[str, str]:
    """The generated files under `folder`/protos, by name."""
    found = {}
    for pattern in PATTERNS:
        for path in (folder / "protos").glob(pattern):
            found[path.name] = path.read_text(encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 where a stub is out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        wanted = stubs(Path(folder))
    present = stubs(ROOT)
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if check:
        for name in stale:
            print(f"protos/{name} is out of date: run `make protos`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        path = ROOT / "protos" / name
        if name in wanted:
            path.write_text(wanted[name], encoding="utf-8")
        else:
            path.unlink()
        print(f"wrote {path.relative_to(ROOT)}" if name in wanted else f"removed {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
