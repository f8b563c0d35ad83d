"""`python -m generate` as a user runs it: in a new process where necessary, otherwise in this one."""

import ast
import dataclasses
import itertools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import outlines
from generate import verbs
from generate.__main__ import main
from generate.options import BY_NAME, VERBS, parse
from outlines.decoding.beam import beam_search
from outlines.decoding.sample import SamplingConfig, sample
from outlines.decoding.scoring import nll_of_rows
from outlines.encoders.recurrent import RecurrentEncoderConfig
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline, Sentence
from outlines.metrics.bleu import reconstruction_bleu
from outlines.models.autoencoder import Autoencoder
from outlines.models.base import block_seed, in_order
from outlines.models.lm import LanguageModel
from outlines.models.registry import save_model
from outlines.models.vae import VAE
from outlines.models.zforcing import StochasticDecoderConfig, ZForcing
from outlines.pretrained import ENGLISH, ENGLISH_TEMPERATURE, SHIPPED, TEMPERATURE
from tests.conftest import Command, environment

GREEDY = SamplingConfig(temperature=0)
A, B = "Two dogs play in the park.", "A woman is reading a book."
Written = Callable[..., list[str]]


@pytest.fixture
def written(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> Written:
    """A function that runs a verb on the tiny run or another one, and returns its lines; error: the expected error."""
    def lines(verb: str, *arguments: object, run: Path = tiny_run, error: str = "") -> list[str]:
        status = main([verb, str(run), *map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        if error:
            assert status == 2 and captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
            assert error in captured.err
        else:
            assert status == 0, captured.err
        return captured.out.splitlines()
    return lines


@pytest.fixture(scope="session")
def other_runs(tiny_run: Path, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An untrained run of a family, with the tokenizer of the tiny run."""
    root, made = tmp_path_factory.mktemp("others"), dict[str, Path]()

    def run(family: str) -> Path:
        if family not in made:
            shape = dataclasses.replace(pipeline.model.decoder.config, vector_dim=0 if family == "lm" else 5,
                                        min_strength=1.0)
            stochastic = StochasticDecoderConfig(shape.vocab_size, vector_dim=64 * 3, embed_dim=8, hidden_dim=8,
                                                 num_layers=2, latent_dim=3, mlp_dim=8)
            encoder = RecurrentEncoderConfig(shape.vocab_size, embed_dim=8, hidden_dim=8, outline_dim=5)
            torch.manual_seed(1)
            save_model(root / family / "model", {"lm": lambda: LanguageModel(shape), "vae": lambda: VAE(
                dataclasses.replace(encoder, outline_dim=10, dropout=0.0), shape),
                                                 "encoder": lambda: Autoencoder(encoder, shape),
                                                 "zforcing": lambda: ZForcing(8, stochastic)}[family]())
            shutil.copy(tiny_run / "tokenizer.model", root / family)
            description = json.loads((tiny_run / "run.json").read_text())
            hashes = {name: value for name, value in description["hashes"].items() if name != "encoder"}
            (root / family / "run.json").write_text(json.dumps({**description, "family": family, "hashes": hashes}))
            made[family] = root / family
        return made[family]
    return run


def lines(run_module: Command, run: Path, *arguments: object) -> list[str]:
    done = run_module("generate", run, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_one_seed_one_set_of_sentences_however_many(tiny_run: Path, run_module: Command, written: Written) -> None:
    many = lines(run_module, tiny_run, "--num", 300, "--seed", 3)
    assert len(many) == 300
    assert written("sample", "--num", 7, "--seed", 3) == many[:7]
    assert written("sample", "--num", 7, "--seed", 4) != many[:7]


def test_needs_nothing_but_the_run_directory(tiny_run: Path, written: Written, tmp_path: Path) -> None:
    for name in ("run.json", "tokenizer.model"):
        shutil.copy(tiny_run / name, tmp_path / name)
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    assert written("sample", "--num", 3, run=tmp_path) == written("sample", "--num", 3)


def test_formats_and_files(written: Written, tmp_path: Path) -> None:
    plain = written("sample", "--num", 5)
    assert written("sample", "--num", 5, "--format", "jsonl", "--out", tmp_path / "out.jsonl") == []
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == plain
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("source", ["generator", "mixture", "gaussian"])
def test_the_controls_can_be_sampled(source: str, written: Written) -> None:
    assert len(written("sample", "--num", 3, "--source", source)) == 3


def test_sampling_options_reach_the_sampler(written: Written) -> None:
    settings = [["--greedy"], ["--temperature", 2], ["--top-k", 1], ["--top-p", 0.2], ["--max-len", 3]]
    outcomes = [tuple(written("sample", "--num", 4, *setting)) for setting in settings]
    assert outcomes[0] == outcomes[2], "top-k 1 is greedy decoding"
    assert len(set(outcomes)) == 4


@pytest.mark.parametrize(("arguments", "message"), [
    (["--num", "0"], "--num: must be a whole number from 1 to 1000000000000, not 0"),
    (["--temperature", "-1"], "--temperature: must be a number of at least 0, not -1"),
    (["--top-p", "0"], "top-p must be"),
    (["--greedy", "--temperature", "1"], "no effect with --greedy"),
    (["--source", "vae"], "hoose from generator, mixture, gaussian"),
    (["--beams", "3"], "Did you mean '--beam'"),
    (["--out", "/nowhere/file"], "cannot be written"),
    (["--out", "."], "cannot be written"),
])
def test_bad_options_are_one_line_and_status_2(arguments: list[str], message: str, written: Written) -> None:
    assert written("sample", *arguments, error=message) == []


def test_damaged_and_unfinished_runs_are_named(tiny_run: Path, run_module: Command, tmp_path: Path) -> None:
    def refused(run: Path, message: str) -> None:
        done = run_module("generate", run)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr

    refused(tmp_path / "nowhere", "nowhere: no run here")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    shutil.rmtree(copy / "model")
    refused(copy, "training has not finished")
    shutil.copytree(tiny_run / "model", copy / "model")
    for name in ("model/tensors.safetensors", "tokenizer.model"):
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(bytes(data))
        refused(copy, f"{name.split('/')[-1]}: damaged")
        shutil.copy(tiny_run / name, copy / name)
    (copy / "tokenizer.model").unlink()
    refused(copy, "tokenizer.model: missing. ")
    assert run_module("train", "--resume", copy, "--quiet").returncode == 0
    assert (copy / "tokenizer.model").read_bytes() == (tiny_run / "tokenizer.model").read_bytes()


def test_a_reader_that_leaves_gets_whole_lines_and_no_trace(tiny_run: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "generate", str(tiny_run), "--num", "100000"], env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().endswith("\n")
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""


def test_sampling_imports_no_encoder_no_tensorboard_and_no_compiler(tiny_run: Path) -> None:
    code = ("import sys; from generate.__main__ import main; main([sys.argv[1], '--num', '1']); "
            "print(sorted({'tensorboard', 'torch.utils.tensorboard', 'sentence_transformers', 'transformers', 'matplotlib', "
            "'scipy', 'sklearn', 'torch._dynamo', 'train'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, str(tiny_run)], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_run_is_sampled_without_a_verb_too(tiny_run: Path, written: Written,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_run), "--num", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == written("sample", "--num", 3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_batch_size_changes_no_sentence(written: Written, precision: str) -> None:
    drawn = ["sample", "--seed", 3, "--precision", precision]
    whole = written(*drawn, "--num", 600)
    assert len(set(whole)) > 300
    for size, num in ((1000, 600), (256, 600), (100, 600), (7, 60), (1, 20)):
        assert written(*drawn, "--num", num, "--batch-size", size) == whole[:num]


def test_the_precision_changes_only_sampling(written: Written, tiny_run: Path) -> None:
    coarse, fine = (outlines.load(tiny_run, "cpu", precision) for precision in ("bfloat16", "float32"))
    assert coarse.sample(200) != fine.sample(200) == written("sample", "--num", 200, "--precision", "float32")
    assert coarse.sample(200) == written("sample", "--num", 200, "--precision", "bfloat16")
    vectors = fine.encode([A, B])
    assert torch.equal(coarse.encode([A, B]), vectors) and coarse.decode(vectors) == fine.decode(vectors)
    for choice in ({"temperature": 0}, {"top_k": 1}, {"beam": 3}):
        assert coarse.sample(50, **choice) == fine.sample(50, **choice)
    scores = [list(run.sentences(20, 1, SamplingConfig(temperature=0), scored=True)) for run in (coarse, fine)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("family", ["lm", "vae", "zforcing"])
def test_every_family_draws_in_bfloat16(family: str, other_runs: Callable[[str], Path]) -> None:
    run = outlines.load(other_runs(family), "cpu", "bfloat16")
    sampling = SamplingConfig(temperature=TEMPERATURE)
    free = list(run.sentences(40, 1, sampling, batch_size=7))
    assert free == list(run.sentences(40, 1, sampling))
    assert len({sentence.text for sentence in free}) > 20
    begun = list(run.sentences(20, 1, sampling, prefix="Two men"))
    assert all(sentence.text.startswith("Two men") for sentence in begun)


def test_the_noise_can_be_scaled(written: Written, other_runs: Callable[[str], Path]) -> None:
    assert len(set(written("sample", "--source", "gaussian", "--greedy", "--noise-scale", 0))) == 1
    assert len(set(written("sample", "--source", "gaussian", "--greedy"))) > 1
    written("sample", "--noise-scale", 0.5, run=other_runs("lm"), error="noise-scale has no effect")
    written("sample", "--noise-scale", -1, error="--noise-scale: must be a number of at least 0")


def test_a_run_without_vectors_refuses_rejection(written: Written, other_runs: Callable[[str], Path]) -> None:
    written("sample", "--rejection", 4, run=other_runs("lm"), error="--rejection is not available")


@pytest.mark.parametrize("family", ["lm", "vae", "zforcing"])
def test_a_run_without_a_frozen_encoder_refuses_drafts(family: str, written: Written,
                                                       other_runs: Callable[[str], Path]) -> None:
    message = f"'{family}' models have no frozen encoder, so drafts cannot be compared with an outline. Remove --drafts."
    written("sample", "--drafts", 2, run=other_runs(family), error=message)
    if family == "vae":
        written("reconstruct", A, "--drafts", 1, "--rounds", 1, run=other_runs(family), error=message)


def test_column_names_go_to_standard_error(written: Written, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "walk\tsteps\tNLL of A\tNLL of B\tsentence\n"
    for format in ("txt", "jsonl"):
        assert main(["interpolate", str(tiny_run), A, B, "--num", "3", "--format", format, "--device", "cpu"]) == 0
        captured = capsys.readouterr()
        assert captured.err.startswith(header) == (format == "txt") and captured.err.count(header) <= 1
        assert captured.out and header not in captured.out


def test_the_first_sentences_come_before_the_others_are_decoded(pipeline: Pipeline) -> None:
    endless = pipeline.sentences(10**12, 1, SamplingConfig(temperature=TEMPERATURE))
    assert [next(endless).text for _ in range(3)] == pipeline.sample(3)


def test_unique_skips_duplicates(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["--temperature", 0.2, "--max-len", 3]
    drawn = written("sample", "--num", 400, *few)
    expected = list(dict.fromkeys(drawn))
    assert len(expected) < 400, "no duplicates were drawn, so the test shows nothing"
    assert written("sample", "--num", len(expected), *few, "--unique") == expected
    monkeypatch.setattr(verbs, "MAX_REPEATS", 3)
    repeated = verbs.unique(Sentence(text, None) for text in "abaacaaad")
    assert [next(repeated).text for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(OutlinesError, match="3 different sentences"):
        next(repeated)


def test_scores_are_the_decoders_own(written: Written, pipeline: Pipeline) -> None:
    drawn = ["sample", "--num", 5, "--precision", "float32"]
    scored = [json.loads(line) for line in written(*drawn, "--with-score", "--format", "jsonl")]
    assert [line["text"] for line in scored] == written(*drawn)
    ids, vectors = next(pipeline.model.generate(5, 1, SamplingConfig(temperature=TEMPERATURE)))
    assert vectors is not None
    decoder = pipeline.model.decoder
    for row, vector, line in zip(ids, vectors, scored, strict=True):
        # One token at a time, as it was sampled.
        cache, total, last = decoder.start(vector[None], 1), 0.0, 1
        for token in [*row, 2]:
            logits = decoder.step(torch.tensor([last]), cache)[0].detach()
            total, last = total - float(logits.log_softmax(dim=0)[token]), token
        assert line["nll"] == pytest.approx(total, rel=1e-4)
        assert line["critic_score"] == pytest.approx(float(pipeline.model.critic(vector[None])), rel=1e-4)  # type: ignore[operator]
    first = scored[0]
    assert written(*drawn, "--num", 1, "--with-score") == [
        f"{first['nll']:.3f}\t{first['critic_score']:.3f}\t{first['text']}"]


def test_beam_search_from_the_command_line(written: Written, pipeline: Pipeline) -> None:
    _, vectors = next(pipeline.model.generate(4, 1, GREEDY))
    assert vectors is not None
    expected = pipeline.tokenizer.lines(beam_search(pipeline.model.decoder, vectors, 4, SamplingConfig(beam=3, max_len=20)))
    assert written("sample", "--num", 4, "--beam", 3, "--max-len", 20) == expected


def test_ctrl_c_leaves_whole_lines_and_no_trace(tiny_run: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "generate", str(tiny_run), "--num", "100000000"], env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    written = "".join(process.stdout.readline() for _ in range(300))
    process.send_signal(signal.SIGINT)
    written += process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == "" and written.endswith("\n")


def test_ctrl_c_leaves_no_part_of_a_file(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[verbs.Line]:
        yield "A dog.", {}
        assert [path.name for path in tmp_path.iterdir()] == ["out.txt.part"]
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "sample", interrupted)
    assert main([str(tiny_run), "--out", str(tmp_path / "out.txt"), "--device", "cpu"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_reconstruction_from_arguments_a_file_and_standard_input(tiny_run: Path, written: Written, pipeline: Pipeline,
                                                                tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_text(f"{A}\n\n{B}\n")
    from_arguments = written("reconstruct", A, B)
    assert written("reconstruct", "--file", file) == from_arguments
    done = subprocess.run([sys.executable, "-m", "generate", "reconstruct", str(tiny_run)], env=environment(),
                          input=file.read_text(), capture_output=True, text=True)
    assert done.stdout.splitlines() == from_arguments
    header, summary, *_ = done.stderr.splitlines()
    assert header == "BLEU\tNLL\treconstruction"
    assert summary.startswith("2 sentences: BLEU ") and "nats per sentence" in summary
    encoded = pipeline.encode([A, B])
    nll, _ = nll_of_rows(pipeline.model.decoder, pipeline.rows([A, B]), encoded)
    for text, rebuilt, expected, line in zip((A, B), pipeline.decode(encoded), nll, from_arguments, strict=True):
        assert line == f"{reconstruction_bleu([rebuilt], [text]):.1f}\t{expected:.2f}\t{rebuilt}"


def test_encoding_is_what_training_saw(pipeline: Pipeline) -> None:
    """The scaled outline of a training sentence equals the stored outline, up to float16."""
    store, sentences = pipeline.training_set.store, pipeline.training_set.sentences
    rows = np.array([0, 7, len(store) - 1])
    stored = (store.rows(rows) - store.mean) / store.scale
    assert np.allclose(pipeline.encode([sentences[int(row)] for row in rows]), stored, atol=0.02)


@pytest.mark.parametrize("walk", ["linear", "spherical", "noise", "gradient"])
def test_every_walk_goes_from_one_sentence_to_the_other(walk: str, written: Written, pipeline: Pipeline) -> None:
    points = [json.loads(line) for line in written("interpolate", A, B, "--walk", walk, "--num", 9, "--format", "jsonl")]
    assert [point["step"] for point in points] == list(np.cumsum([0, *(len(point["nll_a"]) for point in points)])[:-1])
    texts = [point["text"] for point in points]
    assert all(text != following for text, following in itertools.pairwise(texts))
    assert points[0]["walk"] == walk
    own = nll_of_rows(pipeline.model.decoder, pipeline.rows([A, B]), pipeline.encode([A, B]))[0]
    if walk != "noise":  # its ends come from the inverted noise, so they are only close
        assert texts[0] == pipeline.decode(pipeline.encode([A]))[0]
        assert points[0]["nll_a"][0] == pytest.approx(own[0], rel=1e-4)
    vectors = pipeline.interpolate(A, B, walk, 9).vectors
    last = nll_of_rows(pipeline.model.decoder, pipeline.rows([B]), vectors[-1:])[0][0]
    assert last <= 1.05 * own[1] and points[-1]["nll_b"][-1] == pytest.approx(last, rel=1e-4)
    norms = pipeline.model.to_encoder(vectors).norm(dim=1)
    assert torch.allclose(norms, torch.ones(len(norms)), atol=1e-3) == (walk != "linear")


def test_all_walks_and_their_smoothness(written: Written, pipeline: Pipeline, other_runs: Callable[[str], Path]) -> None:
    data = [json.loads(line) for line in written("interpolate", A, B, "--walk", "all", "--num", 7, "--max-len", 20,
                                                 "--smoothness", "--lm", other_runs("lm"), "--format", "jsonl")]
    measured = {line["walk"]: line for line in data if "mean_step" in line}
    assert list(measured) == ["linear", "spherical", "noise", "gradient"]
    texts = [line["text"] for line in data if line["walk"] == "spherical" and line.get("text")]
    encoded = pipeline.model.to_encoder(pipeline.encode(texts))
    assert measured["spherical"]["largest_step"] == pytest.approx(
        float((encoded[1:] - encoded[:-1]).norm(dim=1).max()), rel=1e-4)
    nll, num_targets = outlines.load(other_runs("lm"), "cpu").language_nll(texts[1:-1])
    assert measured["spherical"]["middle_nll_per_token"] == pytest.approx(nll.sum() / num_targets.sum(), rel=1e-4)
    plain = written("interpolate", A, B, "--num", 7, "--max-len", 20, "--smoothness")
    assert plain[-1].startswith(f"spherical: {len(texts)} sentences, mean step ") and len(plain) >= len(texts) + 1


def test_smoothness_without_a_middle_says_so(written: Written) -> None:
    plain = written("interpolate", A, B, "--num", 2, "--max-len", 20, "--smoothness")
    assert plain[-1].endswith(", no sentence between the ends")


def test_variations_lie_at_their_radius(written: Written, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = pipeline.encode([A])[0]
    greedy = pipeline.decode(vector[None], strength=pipeline.model.strength)
    assert written("vary", A, "--radius", 0, "--num", 3, "--greedy") == 3 * greedy
    assert len(set(written("vary", A, "--radius", 1.5, "--num", 30))) > 3
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(type(pipeline.model), "from_encoder", lambda self, raw: seen.append(raw) or self.scaling.scale(raw))
    next(pipeline.sentences(20, 1, GREEDY, pipeline.around(vector, 0.3)))
    distances = (seen[0] - pipeline.model.to_encoder(vector)).norm(dim=1)
    assert torch.allclose(distances, torch.full_like(distances, 0.3), atol=1e-5)


def test_arithmetic_of_outlines(written: Written, pipeline: Pipeline, tmp_path: Path) -> None:
    of_a, of_b = (vector / vector.norm() for vector in pipeline.model.to_encoder(pipeline.encode([A, B])))
    middle, shifted = of_a + of_b, 2 * of_b - of_a
    for made, expected in ((pipeline.mean([A, B]), middle), (pipeline.analogy(A, B, B), shifted)):
        assert torch.allclose(pipeline.model.to_encoder(made), expected / expected.norm(), atol=1e-5)
    assert torch.allclose(pipeline.analogy(A, A, B), pipeline.encode([B])[0], atol=1e-4)
    file = tmp_path / "many.txt"
    file.write_text(f"{A}\n" * 300 + f"{B}\n" * 300)
    assert written("mean", file) == pipeline.decode(pipeline.mean([A, B])[None])
    assert written("analogy", A, B, B) == pipeline.decode(pipeline.analogy(A, B, B)[None])


def test_the_nearest_training_sentences(written: Written, pipeline: Pipeline) -> None:
    copied = pipeline.training_set.sentences[17]
    lines = [json.loads(line) for line in written("nearest", copied, A, "--num", 4, "--format", "jsonl")]
    assert [line["text"] for line in lines] == [copied, A]
    first = lines[0]["neighbours"][0]
    assert first["text"] == copied and first["cosine"] == pytest.approx(1, abs=1e-3)
    # Every training sentence against the second query, without the store.
    encoder = pipeline.encoder
    assert encoder is not None
    cosines = encoder.encode(list(pipeline.training_set.sentences)) @ encoder.encode([A])[0]
    expected = np.sort(cosines)[::-1][:4]
    assert [near["cosine"] for near in lines[1]["neighbours"]] == pytest.approx(expected, abs=2e-3)
    assert cosines[lines[1]["neighbours"][0]["row"]] == pytest.approx(expected[0], abs=2e-3)
    assert written("nearest", copied, "--num", 1) == [copied, f"{first['cosine']:.3f}\t{first['row']}\t{copied}"]


def test_a_sentence_is_encoded_as_the_decoder_writes_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen = pipeline.encoder, list[str]()
    assert encoder is not None
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda sentences: (seen.extend(sentences), encode(sentences))[1])
    pipeline.nearest(["Wait… a dog，½", "Wait... a dog,1⁄2"])
    assert seen == ["Wait... a dog,1⁄2"] * 2


def test_completions_start_with_the_given_beginning(written: Written, pipeline: Pipeline) -> None:
    sampled = written("complete", "Two dogs", "--num", 20, "--temperature", 1.5)
    assert len(set(sampled)) > 3 and all(line.startswith("Two dogs") for line in sampled)
    prefix = pipeline.tokenizer.encode(["Two dogs"])[0]
    weak = dataclasses.replace(GREEDY, strength=pipeline.model.strength)
    expected = sample(pipeline.model.decoder, pipeline.encode([A]), torch.zeros(1, 64), weak, prefix)
    assert written("complete", "Two dogs", "--like", A, "--num", 2, "--greedy") == 2 * pipeline.tokenizer.lines(expected)


@pytest.mark.parametrize("verb", ["reconstruct", "vary", "interpolate", "nearest", "sample", "complete"])
def test_a_language_model_refuses_verbs_of_vectors(verb: str, written: Written, other_runs: Callable[[str], Path]) -> None:
    run = other_runs("lm")
    if verb in ("sample", "complete"):
        assert len(written(verb, *(["A dog"] if verb == "complete" else []), "--num", 3, "--max-len", 9, run=run)) == 3
    else:
        arguments = [A, B] if verb == "interpolate" else [A]
        written(verb, *arguments, run=run, error="so this command is not available")


def test_a_vae_has_the_same_verbs_but_for_noise_and_neighbours(written: Written, other_runs: Callable[[str], Path]) -> None:
    run = other_runs("vae")
    vae = outlines.load(run, "cpu")
    assert torch.equal(vae.encode([A, B]), vae.model.posterior(vae.rows([A, B]), None)[0])  # type: ignore[index]
    assert torch.allclose(vae.mean([A, B]), vae.encode([A, B]).mean(dim=0), atol=1e-6)
    assert len(written("reconstruct", A, "--max-len", 9, run=run)) == 1
    walks = {json.loads(line)["walk"] for line in written("interpolate", A, B, "--walk", "all", "--num", 3, "--max-len", 9,
                                                          "--format", "jsonl", run=run)}
    assert walks == {"linear", "spherical", "gradient"}
    written("interpolate", A, B, "--walk", "noise", run=run, error="Choose from linear, spherical, gradient")
    written("nearest", A, run=run, error="store no outlines")


def test_an_autoencoder_reconstructs_but_does_not_sample(written: Written, other_runs: Callable[[str], Path]) -> None:
    run = other_runs("encoder")
    autoencoder = outlines.load(run, "cpu")
    assert torch.allclose(autoencoder.model.to_encoder(autoencoder.encode([A])).norm(dim=1), torch.ones(1))
    assert float(autoencoder.mean([A, B]).norm()) == pytest.approx(5 ** 0.5)
    assert written("reconstruct", A, "--max-len", 9, run=run) and written("interpolate", A, B, "--max-len", 9, run=run)
    written("sample", run=run, error="no source of new ones")


def test_progress_is_shown_only_on_a_terminal(written: Written, tmp_path: Path, tiny_run: Path,
                                               monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tiny_run), "--num", "5", "--device", "cpu", "--out", str(tmp_path / "out.txt")]
    assert main(arguments) == 0 and re.fullmatch(r"(Sentences cut at 64 tokens: .*\n)?", capsys.readouterr().err)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(arguments) == 0 and "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["sample", "--greedy", "--beam", "3"], "--beam has no effect with --greedy"),
    (["sample", "--greedy", "--precision", "float32"], "--precision has no effect with --greedy"),
    (["sample", "--beam", "3", "--precision", "bfloat16"], "--precision has no effect with --beam"),
    (["sample", "--precision", "float16"], "invalid choice: 'float16'"),
    (["sample", "--beam", "3", "--top-p", "0.5"], "--top-p has no effect with --beam"),
    (["sample", "--beam", "0"], "--beam: must be a whole number of at least 1"),
    (["sample", "--batch-size", "0"], "--batch-size: must be a whole number from 1 to 65536"),
    (["reconstruct", A, "--file", "in.txt"], "A SENTENCE argument has no effect with --file"),
    (["reconstruct", "--file", "/nowhere.txt"], "/nowhere.txt: cannot be read"),
    (["reconstruct", "word " * 100], "tokens, more than this run's limit of 64"),
    (["reconstruct", " "], "contains no words"),
    (["reconstruct", A, "--num", "3"], "Only the verbs sample, interpolate, vary, nearest and complete have it. Leave"),
    (["reconstruct", A, "--temperature=3"], "--temperature has no effect here. Only the verbs sample, vary and complete"),
    (["reconstruct", A, "--(", "3"], "unknown option '--('"),
    (["interpolate", A], "required: B"),
    (["interpolate", A, B, "--num", "1"], "--num: must be a whole number from 2 to 10000"),
    (["interpolate", A, B, "--lm", "x"], "--lm has no effect without --smoothness"),
    (["interpolate", A, B, "--lm", "/nowhere", "--smoothness"], "/nowhere: no run here"),
    (["vary", A, "--radius", "-1"], "--radius: must be a number from 0 to 1000"),
    (["mean", "/nowhere.txt"], "/nowhere.txt: cannot be read"),
    (["complete", " "], "The beginning is empty"),
    (["complete", "Two dogs", "--max-len", "2"], "but a sentence has at most 2"),
    (["complete", "Two", "--like", A, "--source", "mixture"], "--source has no effect with --like"),
])
def test_every_verbs_bad_input_is_one_line(arguments: list[str], message: str, written: Written) -> None:
    assert written(arguments[0], *arguments[1:], error=message) == []


def test_an_encoder_that_is_gone_or_another_is_named(tiny_run: Path, written: Written,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    import outlines.inference.pipeline

    encoder = outlines.load(tiny_run, "cpu").encoder
    assert encoder is not None
    monkeypatch.setattr(encoder, "fingerprint", "another")
    monkeypatch.setattr(outlines.inference.pipeline, "load_encoder", lambda *_: encoder)
    written("reconstruct", A, error="has changed since training")
    assert len(written("sample", "--num", 2)) == 2


def test_a_cache_that_is_gone_is_named(tiny_run: Path, written: Written, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    description = json.loads((copy / "run.json").read_text())

    def with_cache(cache: Path) -> None:
        (copy / "run.json").write_text(json.dumps({**description, "cache": str(cache)}))

    with_cache(tmp_path / "nowhere")
    written("nearest", A, run=copy, error="is missing")
    cache = tmp_path / "cache"
    shutil.copytree(description["cache"], cache, ignore=shutil.ignore_patterns("outlines-*", "evaluator-*"))
    with_cache(cache)
    written("nearest", A, run=copy, error="the outlines of")


def test_a_file_that_is_not_text_is_named_by_its_line(written: Written, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"\n\xff\xfe\n")
    written("mean", tmp_path / "in.txt", error="line 2: The text has a lone surrogate, or bytes that are not UTF-8")
    (tmp_path / "empty.txt").write_text("\n\n")
    written("mean", tmp_path / "empty.txt", error="at least one sentence")


ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = [command.replace("$RUN", "RUN") for name in ("README.md", "docs/generate.md")
              for text in [(ROOT / name).read_text().replace("\\\n", "")]
              for command in re.findall(r"(?:^|`|\| )(python -m generate [^`\n|#]+)", text, re.M)
              if "[" not in command and " VERB " not in command]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_every_documented_command_is_understood(command: str) -> None:
    options = parse(shlex.split(command)[3:])
    assert options.run == SHIPPED[ENGLISH] or str(options.run) in ("RUN", "runs/001-outlines-default")


def test_every_verb_is_documented() -> None:
    assert {parse(shlex.split(command)[3:]).verb for command in DOCUMENTED} == set(VERBS)


def test_from_python(tiny_run: Path, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of docs/generate.md, run."""
    document = (ROOT / "docs" / "generate.md").read_text()
    example, = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert "runs/001-outlines-default" in example
    exec(example.replace("runs/001-outlines-default", str(tiny_run)), {})
    samples, rebuilt, corrected, walked = (ast.literal_eval(line) for line in capsys.readouterr().out.splitlines())
    assert samples == pipeline.sample(3, temperature=0.5)
    assert rebuilt == pipeline.decode(pipeline.encode(["A dog runs.", "Two men play chess."]))
    assert corrected == pipeline.decode(pipeline.encode(["A dog runs.", "Two men play chess."]), drafts=16, rounds=1)
    assert walked == pipeline.interpolate("A dog runs.", "Two men play chess.", "gradient").sentences


def test_threads_change_no_sentence_and_run_ahead_by_a_batch_each(pipeline: Pipeline) -> None:
    sampling = SamplingConfig(temperature=0.7, max_len=8)
    alone = list(pipeline.sentences(300, 1, sampling, batch_size=50))
    assert list(pipeline.sentences(300, 1, sampling, batch_size=50, workers=3)) == alone
    made: list[int] = []
    endless = in_order(lambda item: made.append(item) or item, itertools.count(), workers=2)
    assert [next(endless) for _ in range(5)] == list(range(5))
    endless.close()  # type: ignore[attr-defined]
    assert len(made) <= 7


def test_block_seeds_differ() -> None:
    seeds = {block_seed(seed, start) for seed in range(30) for start in range(0, 25600, 256)}
    assert len(seeds) == 3000 and all(0 <= seed < 2**63 for seed in seeds)


def test_options_have_the_defaults_of_the_sampling_configuration() -> None:
    expected = dataclasses.asdict(SamplingConfig(temperature=TEMPERATURE))
    own = ("beam", "max_len", "temperature")
    assert {name: option.default for name, option in BY_NAME.items() if name in expected and name not in own} == {
        name: value for name, value in expected.items() if name not in own}
    assert verbs.sampling_of(parse(["RUN"])) == SamplingConfig(temperature=TEMPERATURE)
    assert verbs.sampling_of(parse(["english"])) == SamplingConfig(temperature=ENGLISH_TEMPERATURE)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_function_and_a_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(getattr(verbs, verb))
    with pytest.raises(SystemExit, match="0"):
        parse([verb, "--help"])
    printed = capsys.readouterr().out
    for name in VERBS[verb].options.split():
        assert f"--{name.partition('/')[0].replace('_', '-')} " in printed


def test_an_unknown_verb_is_named() -> None:
    with pytest.raises(OutlinesError, match=r"unknown verb 'reconstuct'.*'reconstruct'"):
        parse(["reconstuct", "runs/001", "A dog."])


def test_a_verb_after_the_run_is_named() -> None:
    with pytest.raises(OutlinesError, match=r"The verb comes first: python -m generate reconstruct 'my runs/001' \.\.\."):
        parse(["my runs/001", "reconstruct", "A dog.", "--file", "in.txt"])


@pytest.mark.parametrize(("verb", "arguments", "advice"), [
    ("sample", ["--num", 2], "Use --device cpu or lower --batch-size or lower --num or lower --beam."),
    ("sample", ["--num", 9, "--unique", "--batch-size", 3], "Use --device cpu or lower --batch-size"),
    ("interpolate", [A, B, "--num", 5], "Use --device cpu or lower --num or lower --beam."),
    ("reconstruct", [A], "Use --device cpu or lower --beam."),
    ("complete", ["A dog"], "Use --device cpu or lower --num or lower --beam."),
])
def test_a_lack_of_memory_is_one_line(verb: str, arguments: list[object], advice: str, written: Written, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 is full.")

    monkeypatch.setattr("outlines.decoding.decode.Sampler.__call__", fail)
    out = tmp_path / "out.txt"
    assert not written(verb, *arguments, "--out", out, error=f"Out of memory (CUDA out of memory. GPU 0 is full.). {advice}")
    assert not list(tmp_path.iterdir())
