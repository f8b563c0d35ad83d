"""The one-way imports train → outlines ← generate, and the ban on code that unpickles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"outlines": {"train", "generate", "argparse", "logging"}, "train": {"generate"}, "generate": {"train"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where a name comes from"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_the_one_way_rule(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        tops = {name.split(".")[0] for name in imported(file)}
        assert not tops & FORBIDDEN[package], f"{file} imports {tops & FORBIDDEN[package]}"


def test_no_family_imports_another() -> None:
    shared = {"outlines.models.base", "outlines.models.outlines", "outlines.models.autoencoder"}
    for file in sorted((ROOT / "outlines" / "models").glob("*.py")):
        if file.stem != "registry":
            assert not {name for name in imported(file) if name.startswith("outlines.models.")} - shared, file


def test_evaluation_does_not_train() -> None:
    for file in sorted((ROOT / "train" / "evaluation").glob("*.py")):
        assert not imported(file) & {"train.session", "train.loop", "train.commands"}, file


def test_generation_starts_without_sacrebleu() -> None:
    code = "import sys, generate.__main__, generate.verbs, outlines.inference; assert 'sacrebleu' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_run_is_loaded_without_the_compiler_of_torch() -> None:
    code = "import sys, outlines; outlines.load('english', 'cpu').sample(1); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


BANNED = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pandas", "yaml"}
"""Modules that unpickle files, or can be told to."""
LOADERS = {"torch.load", "torch.jit.load", "torch.hub.load", "numpy.fromstring", "eval", "exec", "__import__", "os.system"}


def test_nothing_is_loaded_that_could_run_code() -> None:
    for package in (*FORBIDDEN, "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            assert not code_run_by(file.read_text()), file


def code_run_by(source: str) -> list[str]:
    """Return the calls and imports in a file that could run code from data, under any name."""
    tree, aliases, found = ast.parse(source), {"np": "numpy"}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in BANNED]
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).split(".")[0] in BANNED else []
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            first, _, rest = ast.unparse(node).partition(".")
            name = ".".join(part for part in (aliases.get(first, first), rest) if part)
            # Only full names count, so `model.eval()` is allowed.
            found += [name] if name in LOADERS else []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            found += [] if "allow_pickle" in [keyword.arg for keyword in node.keywords] else ["np.load"]
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code", "shell"):
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else [node.arg]
    return found


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "import cloudpickle as c",
    "import torch\ntorch.load(f)", "import torch as t\nt.load(f)", "from torch import load as read\nread(f)", "np.load(f)",
    "np.load(f, allow_pickle=True)",
    "f(trust_remote_code=x)", "eval(text)", "subprocess.run(c, shell=True)"])
def test_the_ban_detects_every_import_style(source: str) -> None:
    assert code_run_by(source)
    assert not code_run_by("model.eval()\nnp.load(f, allow_pickle=False)\nfrom safetensors.torch import load\nload(b)")
