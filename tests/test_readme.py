"""The README and the docs: their commands parse or run in miniature, the README fits its limits."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest

from generate.options import parse as parse_generation
from tests.conftest import Command
from train.commands import ablate, evaluate, train
from train.commands.train import parse, plan_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def bash_lines(text: str) -> list[str]:
    """Return the command lines of the bash blocks: continued lines joined, comments removed, $VARIABLES expanded.

    Earlier blocks of the same text can define the variables.
    """
    lines: list[str] = []
    variables: dict[str, str] = {}
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for name, value in re.findall(r"^(\w+)=(\S*|\".*\")$", block, re.MULTILINE):
            for known, found in variables.items():
                value = value.replace(f"${known}", found.strip('"'))
            variables[name] = value
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value.strip('"'))
            lines.append(re.sub(r"\s+# .*", "", line).strip())
    return lines


def commands(module: str) -> list[str]:
    """Return every complete `python -m MODULE` command of the README and the docs, in text, tables and bash blocks."""
    found: list[str] = []
    for document in DOCUMENTS:
        text = document.read_text()
        found += re.findall(r"`(python -m [^`]+|torchrun [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        found += [part for line in bash_lines(text) for part in re.split(r" && | \| |; ", line)]
    files = "--corpus train.txt --valid val.txt --test test.txt"  # the value of these variables in text
    for name, value in (("DATA", files), ("F", f"{files} --config docs/earlier.toml")):
        found = [re.sub(rf"\${name}\b", value, command) for command in found]
    incomplete = r"…|FAMILY|-m (train|generate) (evaluate|ablate|nearest|serve)$"
    return sorted({command for command in found
                   if re.search(rf"(python|torchrun).* -m {module}\b", command) and not re.search(incomplete, command)})


def test_the_readme_fits_its_limits() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 160


def test_the_two_commands_install_what_setup_cfg_offers() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    first, = (line for line in bash_lines(README) if line.endswith(" && .venv/bin/python -m generate"))
    tests, = (line for line in bash_lines(README) if line.endswith(" && .venv/bin/python -m pytest"))
    installs = [part for line in (first, tests) for part in line.split(" && ") if " install " in part]
    assert len(installs) == 2
    for command in installs:
        words = shlex.split(command)
        assert (ROOT / words[words.index("-c") + 1]).is_file()
        named = re.fullmatch(r"\.\[([a-z,]+)\]", words[-1])
        assert named and set(named[1].split(",")) <= extras


def test_constraints_pin_every_requirement() -> None:
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
              if "==" in line}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    names = {re.split(r"[<>=]", line)[0].strip() for text in wanted for line in text.splitlines() if line.strip()}
    assert names <= pinned, f"not in constraints.txt: {names - pinned}"
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("command", commands("train"))
def test_every_training_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # The documented files do not exist here.
    monkeypatch.setattr(train, "fit_splits", lambda corpus, *_: corpus)
    monkeypatch.setattr(train, "with_source", lambda config, _: config)
    words = shlex.split(command.replace("$K", "2000"))
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            parse(words[words.index("train") + 1:])
        return
    arguments = words[words.index("train") + 1:]
    for verb in (ablate, evaluate):
        if arguments[:1] == [verb.__name__.rpartition(".")[2]]:
            assert verb.parser().parse_args(arguments[1:])
            return
    options = parse(arguments)
    assert options.resume or plan_of(options).runs


def test_every_file_of_options_is_valid(tmp_path: Path) -> None:
    blocks = [block for document in DOCUMENTS for block in re.findall(r"```toml\n(.*?)```", document.read_text(), re.DOTALL)]
    assert blocks
    for block in blocks:
        (tmp_path / "options.toml").write_text(block)
        assert plan_of(parse(["--config", str(tmp_path / "options.toml")])).runs


@pytest.mark.parametrize("command", commands("generate"))
def test_every_generation_command_parses(command: str) -> None:
    words = shlex.split(command.split(" | ")[0])
    assert parse_generation(words[words.index("generate") + 1:]).run


def test_the_main_job_in_miniature(tiny_arguments: list[str], run_module: Command, tmp_path: Path) -> None:
    """The first command's training, and the two commands that it names next."""
    done = run_module("train", *tiny_arguments[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| generator " in done.stdout and "ten samples" in done.stdout
    following = done.stdout.split("next:\n")[1].split("\n")
    generate, tensorboard = (line.strip() for line in following[:2])
    assert tensorboard == "tensorboard --logdir runs"
    words = shlex.split(generate)
    assert words[:3] == ["python", "-m", "generate"]
    again = run_module("generate", *words[3:], cwd=tmp_path)
    samples = done.stdout.split("ten samples at T = 0.5:\n")[1].split("\n\n")[0]
    assert [line[2:] for line in samples.splitlines()] == again.stdout.splitlines()


def test_the_embedded_corpus_needs_no_file(recurrent_encoder: Path, run_module: Command, tmp_path: Path) -> None:
    done = run_module("train", "--preset", "tiny", "--encoder", f"recurrent:{recurrent_encoder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs" / "001-outlines-tiny" / "report.json").read_text())
    assert report["rows"][0]["source"] == "real text" and report["rows"][0]["in_language"] == 1.0
    assert "resuming at" not in done.stderr and (tmp_path / "runs" / "001-outlines-tiny" / "report.md").is_file()


def test_the_python_example_runs(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example.replace("runs/001-outlines-default", str(tiny_run)), {})
    assert len(capsys.readouterr().out.splitlines()) == example.count("print(") > 0


def test_the_encoder_you_train_can_be_used(tiny_corpus: Path, run_module: Command, tmp_path: Path) -> None:
    done = run_module("train", "encoder", "--preset", "tiny", "--corpus", tiny_corpus, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    following = shlex.split(done.stdout.split("next:\n")[1])
    assert following[:5] == ["python", "-m", "train", "outlines", "--encoder"]
    again = run_module("train", *following[3:], "--preset", "tiny", "--corpus", tiny_corpus, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    refused = run_module("generate", tmp_path / "runs" / "001-encoder-tiny")
    assert refused.returncode == 2 and "no source of new ones" in refused.stderr
