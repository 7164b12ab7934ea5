"""ARCHITECTURE section 3: which layer may import what, read from the source and checked in fresh processes."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("dflash_core", "protos", "cluster", "deployments")


@dataclass(frozen=True)
class Rule:
    """`allowed_layers` are the project's own packages a layer may import; `forbidden` are other libraries."""

    allowed_layers: frozenset[str]
    forbidden: frozenset[str]


RULES = {
    "dflash_core": Rule(
        frozenset({"dflash_core"}), frozenset({"ray", "grpc", "google", "fastapi", "starlette", "uvicorn", "httpx"})
    ),
    "protos": Rule(frozenset({"protos"}), frozenset({"ray", "torch", "transformers", "fastapi", "starlette"})),
    "cluster": Rule(
        frozenset({"dflash_core", "protos", "cluster"}), frozenset({"ray", "fastapi", "starlette", "uvicorn"})
    ),
    "deployments": Rule(frozenset(LAYERS), frozenset()),
}

# Modules of router and gateway processes, and the front of the command line: importing one must not bring torch.
# A name that ends in ".*" stands for every module of that package.
LIGHT_MODULES = [
    "cluster",
    "cluster.requests",
    "cluster.router.*",
    "cluster.text",
    "cluster.wire.*",
    "cluster.transports.*",
    "deployments",
    "deployments.check_config",
    "deployments.cli.app",
    "deployments.cli.complete",
    "deployments.gateway",
    "deployments.router",
    "deployments.settings",
    "dflash_core.contracts",
    "dflash_core.errors",
    "dflash_core.sampling.noise",
    "dflash_core.trees",
]
HEAVY_LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    module: str

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(path: Path) -> list[Import]:
    """Every import of a file, those inside functions and under TYPE_CHECKING included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            found.append(Import(path, node.lineno, node.module))
    return found


def imports_of_layer(layer: str) -> list[Import]:
    return [found for path in sorted((ROOT / layer).rglob("*.py")) for found in imports_of(path)]


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_only_what_it_may(layer: str) -> None:
    rule = RULES[layer]
    offences = [
        str(found)
        for found in imports_of_layer(layer)
        if found.package in rule.forbidden
        or (found.package in LAYERS and found.package not in rule.allowed_layers)
        or found.package in ("tests", "benchmarks", "scripts")
    ]
    assert not offences, "\n".join(offences)


def test_benchmarks_need_no_server() -> None:
    """They run where neither Ray nor an HTTP server is installed: on a bare GPU machine."""
    forbidden = {"deployments", "tests", "scripts", "ray", "grpc", "fastapi", "starlette", "uvicorn", "httpx"}
    offences = [str(found) for found in imports_of_layer("benchmarks") if found.package in forbidden]
    assert not offences, "\n".join(offences)


def test_models_run_in_the_core_alone() -> None:
    """`cluster` reaches models through runners; only the benchmark's reference runs one by itself."""
    users = {
        found.path.relative_to(ROOT).as_posix()
        for layer in ("cluster", "deployments")
        for found in imports_of_layer(layer)
        if found.package in HEAVY_LIBRARIES
    }
    assert users <= {"cluster/bench/hugging_face.py", "cluster/bench/machine.py"}


def test_the_rules_catch_an_offence(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def late():\n    from ray import serve\n    import grpc.aio\n")
    assert [found.package for found in imports_of(path)] == ["ray", "grpc"]


def modules_named(pattern: str) -> list[str]:
    package = pattern.removesuffix(".*")
    if package == pattern:
        return [pattern]
    names = []
    for path in sorted((ROOT / Path(*package.split("."))).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert names, f"{package} has no modules"
    return names


@pytest.mark.parametrize("pattern", LIGHT_MODULES)
def test_light_module_leaves_torch_out(pattern: str) -> None:
    code = (
        f"import importlib, sys\nfor name in {modules_named(pattern)!r}:\n    importlib.import_module(name)\n"
        f"print([name for name in {HEAVY_LIBRARIES!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]", f"{pattern} imports {result.stdout.strip()}"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_libraries(*extras: str) -> set[str]:
    """Names of the dependencies of pyproject.toml, with those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [
        *project["dependencies"],
        *(entry for name in extras for entry in project["optional-dependencies"][name]),
    ]
    return {normalised(re.split(r"[\[<>=!~; ]", entry)[0]) for entry in entries}


@pytest.mark.parametrize(
    ("folders", "declared"),
    [(LAYERS, declared_libraries()), (("tests", "scripts", "benchmarks"), declared_libraries("dev"))],
    ids=["product", "tests"],
)
def test_every_imported_library_is_declared(folders: tuple[str, ...], declared: set[str]) -> None:
    """A library that comes only because another one needs it today is gone with that one's next release."""
    ours = {*LAYERS, "tests", "scripts", "benchmarks", "google"}  # google: a namespace of many distributions
    distributions = importlib.metadata.packages_distributions()
    missing = []
    for found in [found for folder in folders for found in imports_of_layer(folder)]:
        providers = {normalised(name) for name in distributions.get(found.package, [])}
        if found.package not in ours | sys.stdlib_module_names and not providers & declared:
            missing.append(f"{found} (from {sorted(providers) or 'no installed distribution'})")
    assert not missing, "\n".join(missing)


def test_everything_declared_is_pinned() -> None:
    """constraints.txt names an exact version of each dependency."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {normalised(name) for name in re.findall(r"^([\w.-]+)==[\w.]+$", text, re.MULTILINE)}
    assert not declared_libraries("dev") - pins
