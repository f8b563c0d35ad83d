"""README and docs name only files, tests and benchmarks that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
PACKAGES = ("outlines", "train", "generate")
SOURCE = {path.relative_to(ROOT): path.read_text() for folder in (*PACKAGES, "tests", "benchmarks", "docs")
          for path in (ROOT / folder).rglob("*.py")}
PRODUCT = "\n".join(text for path, text in SOURCE.items() if path.parts[0] in PACKAGES)
TESTS = {path.name: set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
         for path, text in SOURCE.items() if path.parts[0] == "tests"}
RUN_FILE = re.compile(r"[\w-]+\.(json|npy|model|png|md)")


def spans(page: Path) -> list[str]:
    """Return the words of all code spans outside code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]


def missing(word: str) -> bool:
    """Return whether a word names a source file, a test or a run's file that does not exist."""
    file, _, test = word.partition("::")
    if file.endswith(".py"):
        found = [path for path in SOURCE if str(path) == file or ("/" not in file and path.name == file)]
        return not found or (bool(test) and not any(test in TESTS[path.name] for path in found))
    if re.fullmatch(r"(::)?test_\w+", word):
        return not any(word.removeprefix("::") in names for names in TESTS.values())
    if word.split("/")[0] in (*PACKAGES, "tests", "docs", "benchmarks") and "/" in word:
        # A key of the log, such as train/bad_steps, is a string in the product.
        return not re.search(r"[*…]", word) and not (ROOT / word).exists() and word not in PRODUCT
    if RUN_FILE.fullmatch(word):
        # The product writes a run's files, so their names are strings in its source.
        return f'"{word}' not in PRODUCT and f'/{word}"' not in PRODUCT and not list(ROOT.glob(word)) + list(
            (ROOT / "docs").glob(word))
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_named_file_and_test_exists(page: Path) -> None:
    assert not [word for word in spans(page) if missing(word)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_the_check_sees_wrong_names() -> None:
    for word in ("seeds.json", "outlines/nowhere.py", "nowhere.py", "test_nowhere.py::test_x", "test_nowhere",
                 "test_batching.py::test_nowhere", "docs/nowhere.md"):
        assert missing(word), word
    for word in ("runs.json", "outlines/errors.py", "test_batching.py", "tests/corpus", "docs/runs.md", "train/bad_steps",
                 "test_the_check_sees_wrong_names"):
        assert not missing(word), word


def test_the_list_of_benchmarks_is_complete() -> None:
    listed = re.findall(r"`python -m benchmarks\.(\w+)", (ROOT / "benchmarks" / "README.md").read_text())
    commands = [path.stem for path, text in SOURCE.items() if path.parts[0] == "benchmarks" and "__main__" in text]
    assert listed == sorted(commands)
