import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outlines.text_model import block_seed
from tests.conftest import Command, environment


def lines(run_module: Command, run: Path, *arguments: object) -> list[str]:
    done = run_module("generate", run, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_one_seed_one_set_of_sentences_however_many(tiny_run: Path, run_module: Command) -> None:
    many = lines(run_module, tiny_run, "--num", 300, "--seed", 3)
    assert len(many) == 300
    assert lines(run_module, tiny_run, "--num", 7, "--seed", 3) == many[:7]
    assert lines(run_module, tiny_run, "--num", 7, "--seed", 4) != many[:7]


def test_needs_nothing_but_the_run_directory(tiny_run: Path, run_module: Command, tmp_path: Path) -> None:
    for name in ("run.json", "tokenizer.model"):
        shutil.copy(tiny_run / name, tmp_path / name)
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    assert lines(run_module, tmp_path, "--num", 3) == lines(run_module, tiny_run, "--num", 3)


def test_formats_and_files(tiny_run: Path, run_module: Command, tmp_path: Path) -> None:
    plain = lines(run_module, tiny_run, "--num", 5)
    assert lines(run_module, tiny_run, "--num", 5, "--format", "jsonl", "--out", tmp_path / "out.jsonl") == []
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == plain
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("source", ["generator", "mixture", "gaussian"])
def test_the_controls_can_be_sampled(source: str, tiny_run: Path, run_module: Command) -> None:
    assert len(lines(run_module, tiny_run, "--num", 3, "--source", source)) == 3


def test_sampling_options_reach_the_sampler(tiny_run: Path, run_module: Command) -> None:
    settings = [["--greedy"], ["--temperature", 2], ["--top-k", 1], ["--top-p", 0.2], ["--max-len", 3]]
    outcomes = [tuple(lines(run_module, tiny_run, "--num", 4, *setting)) for setting in settings]
    assert outcomes[0] == outcomes[2], "the likeliest token alone is greedy decoding"
    assert len(set(outcomes)) == 4


@pytest.mark.parametrize(("arguments", "message"), [
    (["--num", "0"], "--num must be at least 1"),
    (["--temperature", "-1"], "temperature must be"),
    (["--top-p", "0"], "top-p must be"),
    (["--greedy", "--temperature", "1"], "no effect with --greedy"),
    (["--source", "vae"], "choose from generator, mixture, gaussian"),
    (["--beams", "3"], "unrecognized arguments"),
    (["--out", "/nowhere/file"], "cannot be written"),
])
def test_bad_options_are_one_line_and_status_2(arguments: list[str], message: str, tiny_run: Path,
                                               run_module: Command) -> None:
    done = run_module("generate", tiny_run, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_damaged_and_unfinished_runs_are_named(tiny_run: Path, run_module: Command, tmp_path: Path) -> None:
    def refused(run: Path, message: str) -> None:
        done = run_module("generate", run)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr

    refused(tmp_path / "nowhere", "no run here")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    shutil.rmtree(copy / "model")
    refused(copy, "training has not finished")
    shutil.copytree(tiny_run / "model", copy / "model")
    tensors = copy / "model" / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(bytes(data))
    refused(copy, "tensors.safetensors: damaged")
    tokenizer = bytearray((copy / "tokenizer.model").read_bytes())
    tokenizer[len(tokenizer) // 2] ^= 1
    (copy / "tokenizer.model").write_bytes(bytes(tokenizer))
    refused(copy, "tokenizer.model")


def test_a_reader_that_leaves_gets_whole_lines_and_no_trace(tiny_run: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "generate", str(tiny_run), "--num", "100000"], env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().endswith("\n")
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""


def test_sampling_imports_no_encoder_and_no_tensorboard(tiny_run: Path) -> None:
    code = ("import sys; from generate.__main__ import main; main([sys.argv[1], '--num', '1']); "
            "print(sorted({'tensorboard', 'sentence_transformers', 'transformers', 'train'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, str(tiny_run)], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_block_seeds_differ() -> None:
    seeds = {block_seed(seed, start) for seed in range(30) for start in range(0, 25600, 256)}
    assert len(seeds) == 3000 and all(0 <= seed < 2**63 for seed in seeds)
