"""Nothing in the product turns bytes or text into code: no pickle, no eval, wherever the bytes come from."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("dflash_core", "protos", "cluster", "deployments")

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle", "code", "codeop"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "os.system", "os.popen"}


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module] if node.module.split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS | METHODS:
                names = [name]
            # Tensors of a pickle, and arrays of Python objects, run what is in them.
            elif name == "torch.load" and not _has(node, "weights_only", True):
                names = ["torch.load without weights_only=True"]
            elif name in ("np.load", "numpy.load") and _has(node, "allow_pickle", True):
                names = ["np.load with allow_pickle=True"]
            elif _has(node, "trust_remote_code", True):
                names = [f"{name} with trust_remote_code=True"]
            elif _has(node, "shell", True):
                names = [f"{name} with shell=True"]
        found += [f"line {getattr(node, 'lineno', 0)}: {name}" for name in names]
    return found


def _has(call: ast.Call, keyword: str, value: bool) -> bool:
    return any(
        entry.arg == keyword and isinstance(entry.value, ast.Constant) and entry.value.value is value
        for entry in call.keywords
    )


@pytest.mark.parametrize("layer", PRODUCT)
def test_the_product_runs_no_code_from_outside(layer: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}, {offence}"
        for path in sorted((ROOT / layer).rglob("*.py"))
        for offence in offences(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "eval(text)",
        "yaml.load(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_check_finds_it(source: str) -> None:
    assert len(offences(source)) == 1


def test_the_check_lets_through_what_is_harmless() -> None:
    assert not offences("model.eval()\nre.compile(pattern)\nyaml.safe_load(text)\ntorch.load(path, weights_only=True)")
