"""Fixtures of several tests: a small corpus, an encoder, a finished run, and commands run like a user runs them."""

import os

# Two workers share two cores. torch reads this variable when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from outlines import load
from outlines.corpus import grammar
from tests.tiny_causal_lm import tiny_causal_lm

# A shell that starts the tests in the background ignores Ctrl-C, and all processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from outlines.inference.pipeline import Pipeline

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text file with 600 sentences of the embedded grammar."""
    path = tmp_path_factory.mktemp("corpus") / "scenes.txt"
    path.write_text("\n".join(grammar.sentences(600, seed=5)) + "\n")
    return path


def environment(threads: int = 1) -> dict[str, str]:
    """Return this process's environment, with few threads and this checkout's packages."""
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def run_module() -> Command:
    """Return a function that runs `python -m MODULE ARGUMENTS` and returns its output and status."""
    def run(module: str, *arguments: object, cwd: Path | None = None, timeout: float = 240,
            threads: int = 1) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True,
                              cwd=cwd, env=environment(threads), timeout=timeout)
    return run


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random GPT-2 with one special token, for bos and eos, and a tokenizer of the corpus."""
    return tiny_causal_lm("gpt2", tiny_corpus, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def tiny_llama(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random Llama with untied embeddings, bos and eos, and no pad, and a tokenizer of the corpus."""
    return tiny_causal_lm("llama", tiny_corpus, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def recurrent_encoder(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained frozen encoder with 16 dimensions, which needs no extra."""
    import torch

    from outlines.corpus.tokenizer import train_tokenizer
    from outlines.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig, save_recurrent_encoder
    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(tiny_corpus.read_text().splitlines(), directory / "spm.model", vocab_size=400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = RecurrentEncoderConfig(tokenizer.vocab_size, embed_dim=16, hidden_dim=16, outline_dim=16)
        module = RecurrentEncoder(config).eval()
    save_recurrent_encoder(directory / "encoder", module, directory / "spm.model")
    return directory / "encoder"


@pytest.fixture(scope="session")
def tiny_arguments(tiny_corpus: Path, recurrent_encoder: Path) -> list[str]:
    """Return the arguments of a run that trains every part of the outline model in seconds."""
    return ["outlines", "--preset", "tiny", "--corpus", str(tiny_corpus), "--encoder", f"recurrent:{recurrent_encoder}"]


@pytest.fixture(scope="session")
def tiny_run(run_module: Command, tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of neural outlines."""
    runs = tmp_path_factory.mktemp("runs")
    done = run_module("train", *tiny_arguments, "--runs", runs, "--out", runs / "run", "--quiet")
    assert done.returncode == 0, done.stderr
    return runs / "run"


@pytest.fixture(scope="session")
def pipeline(tiny_run: Path) -> "Pipeline":
    """Return that run, loaded."""
    return load(tiny_run, "cpu")
