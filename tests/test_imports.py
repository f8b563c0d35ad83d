"""train → outlines ← generate: who may import whom, and what no file may do."""

import ast
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
        assert "pickle" not in tops, file


def test_no_baseline_imports_another() -> None:
    for file in sorted((ROOT / "outlines" / "baselines").glob("*.py")):
        assert not {name for name in imported(file) if name.startswith("outlines.baselines.")}, file


def test_nothing_is_loaded_that_could_run_code() -> None:
    for package in FORBIDDEN:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    assert ast.unparse(node.func) not in ("torch.load", "pickle.load", "pickle.loads"), file
                if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, file
