"""Conditional outlines: how sentences are paired, the generator's start, its critic, and a tiny run from end to end."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outlines
from generate.__main__ import main as generate
from outlines.corpus import grammar
from outlines.corpus.formats import CorpusError
from outlines.corpus.pairs import Pairs, load_pairing
from outlines.corpus.reading import CorpusFiles, ReadingReport, fingerprint, read_corpus
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Condition, Pipeline
from outlines.metrics.outlines import energy_score
from outlines.models.lm import LanguageModel
from outlines.networks.conditional import (
    ConditionalFlow,
    ConditionalGenerator,
    ConditionalGeneratorConfig,
    ProjectionCritic,
    fit_linear_gaussian,
)
from outlines.networks.flow import flow_matching_loss
from outlines.networks.gru import GRUConfig
from tests.conftest import Command
from tests.train.test_training import weights
from train.__main__ import main as train
from train.config import CorpusConfig, RunConfig, resolve
from train.data import Dataset, fit_splits, open_dataset
from train.evaluation.conditions import Comparison, PairRows, conditions_of, held_out_pairs
from train.method import Update, find_method
from train.methods.conditional import ConditionalMethod, PairBatch
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks

GROUP = 5


def written(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def grouped(directory: Path, lines: list[str], **options: Any) -> CorpusFiles:
    """The same lines as all three splits, in groups of 3."""
    paths = [written(directory / f"{split}.txt", lines) for split in ("train", "valid", "test")]
    return CorpusFiles(**{"corpus": (paths[0],), "valid": (paths[1],), "test": (paths[2],), "group_lines": 3, **options})


LINES = [f"picture {group} line {line}" for group in range(40) for line in range(3)]


def picture(sentence: str) -> str:
    return sentence.split()[1]


def test_pairs_never_mix_groups_nor_pair_a_line_with_itself(tmp_path: Path) -> None:
    pairs = load_pairing(grouped(tmp_path, LINES), tmp_path / "pairs").splits["train"]
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        conditions = pairs.conditions(pairs.targets, rng.random(len(pairs.targets)))
        assert all(picture(LINES[c]) == picture(LINES[t]) and c != t for c, t in zip(conditions, pairs.targets, strict=True))
        seen |= set(zip(conditions.tolist(), pairs.targets.tolist(), strict=True))
    assert len(pairs.targets) == 120 and len(seen) == 240, "every line is written for each of the other two"
    assert pairs.conditions(np.array([0, 1, 2]), np.array([0.999999, 0.5, 0.0])).tolist() == [2, 2, 0]


def test_a_skipped_line_shifts_no_group(tmp_path: Path) -> None:
    lines = list(LINES)
    lines[1], lines[3], lines[4] = "", " ", "\0"  # one line of the first picture, two of the second
    report = ReadingReport()
    members = [member for member in read_corpus(grouped(tmp_path, lines), report) if member.split == "train"]
    groups: dict[int, set[str]] = {}
    for member in members:
        groups.setdefault(member.group, set()).add(picture(member.sentence))
    assert [pictures for pictures in groups.values()] == [{str(number)} for number in range(40)]
    assert report.rejected.total() == 9 and report.accepted["train"] == 117
    pairs = load_pairing(grouped(tmp_path, lines), tmp_path / "pairs").splits["train"]
    assert 2 not in pairs.targets, "the only line of a group has no condition"
    assert len(pairs.labels) == 117 and len(pairs.targets) == 116


def test_a_new_file_begins_a_new_group(tmp_path: Path) -> None:
    short, more = written(tmp_path / "short.txt", LINES[:2]), written(tmp_path / "more.txt", LINES[3:9])
    files = grouped(tmp_path, LINES, corpus=(short, more))
    assert [member.group for member in read_corpus(files, ReadingReport())][:8] == [0, 0, 1, 1, 1, 2, 2, 2]


def test_a_group_falls_in_one_split_as_a_whole(tmp_path: Path) -> None:
    files = grouped(tmp_path, LINES, valid=(), test=(), valid_fraction=0.3, test_fraction=0.3)
    splits: dict[str, set[str]] = {}
    for member in read_corpus(files, ReadingReport()):
        splits.setdefault(picture(member.sentence), set()).add(member.split)
    assert len(splits) == 40 and all(len(where) == 1 for where in splits.values())
    assert set.union(*splits.values()) == {"train", "valid", "test"}


def records(path: Path, rows: list[dict[str, str]]) -> str:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def test_columns_give_one_condition_and_its_texts_with_their_labels(tmp_path: Path) -> None:
    rows = [{"condition": f"picture {number}", "label": label, "text": f"picture {number} in {label}"}
            for number in range(30) for label in ("prose", "verse")]
    rows[3] = {"condition": "picture 1", "text": "no label"}
    path = records(tmp_path / "pairs.jsonl.gz", rows)
    files = CorpusFiles((path,), (path,), (path,), condition_column="condition", label_column="label")
    report = ReadingReport()
    members = [member for member in read_corpus(files, report) if member.split == "train"]
    assert report.rejected["column missing"] == 3, "one line, in each of the splits"
    assert [(member.sentence, member.label) for member in members[:5]] == [
        ("picture 0", ""), ("picture 0 in prose", "prose"), ("picture 0 in verse", "verse"), ("picture 1", ""),
        ("picture 1 in prose", "prose")]
    pairing = load_pairing(files, tmp_path / "pairs")
    pairs = pairing.splits["train"]
    assert pairing.labels == ("prose", "verse") and pairs.labels[:5].tolist() == [-1, 0, 1, -1, 0]
    assert pairs.targets[:3].tolist() == [1, 2, 4] and pairs.conditions(pairs.targets[:3], np.ones(3)).tolist() == [0, 0, 3]
    assert pairs.texts(0).tolist() == [1, 2] and pairs.alike(2).tolist() == [2]


@pytest.mark.parametrize(("options", "message"), [
    ({"group_lines": 0, "condition_column": "condition"}, "have no condition column"),
    ({"group_lines": 1}, "Use at least 2"),
    ({"group_lines": 0, "label_column": "label"}, "a label needs a condition"),
])
def test_pairs_that_cannot_be_read_are_errors(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message):
        grouped(tmp_path, LINES, **options).check()


def test_a_corpus_without_pairs_keeps_its_fingerprint(tmp_path: Path) -> None:
    files = grouped(tmp_path, LINES, group_lines=0)
    alone = {split: getattr(files, split) for split in ("corpus", "valid", "test")}
    assert fingerprint(files) == fingerprint(CorpusFiles(**alone)) != fingerprint(CorpusFiles(**alone, group_lines=3))
    single = grouped(tmp_path, LINES[::3], group_lines=2, test=(written(tmp_path / "one.txt", ["one"]),))
    config = CorpusConfig(corpus=single.corpus, valid=single.valid, test=single.test, group_lines=2)
    with pytest.raises(CorpusError, match=r"Too few groups .*test 0\); each split needs 4"):
        fit_splits(config, Reporter(quiet=True))


def test_held_out_pairs_are_of_different_groups_and_always_the_same() -> None:
    pairs = Pairs(np.repeat(np.arange(20), 4), np.full(80, -1), headed=False)
    found = held_out_pairs(pairs, 15)
    assert len(set(pairs.first[found.targets])) == 15
    assert all((one == other).all() for one, other in zip(found, held_out_pairs(pairs, 15), strict=True))
    assert (pairs.first[found.targets] == pairs.first[found.conditions]).all() and (found.targets != found.conditions).all()


def known(num: int = 20_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs of a linear-Gaussian with three labels as one-hot conditions: conditions, outlines, weight, covariance."""
    torch.manual_seed(0)
    weight, root = torch.randn(4, 5), torch.randn(4, 4) / 2
    conditions = torch.cat([torch.randn(num, 5) + 3, torch.nn.functional.one_hot(torch.randint(3, (num,)), 3)], dim=1)
    offsets = conditions[:, 5:] @ torch.tensor([[0.0, 1, 2, 3], [5, 4, 3, 2], [-1, -1, 0, 0]])
    return conditions, conditions[:, :5] @ weight.T + offsets + torch.randn(num, 4) @ root.T, weight, root @ root.T


def test_the_fit_recovers_a_known_linear_gaussian() -> None:
    conditions, outlines, weight, covariance = known()
    fit = fit_linear_gaussian(conditions, outlines, chunk=3000)
    assert torch.allclose(fit.weight[:, :5], weight, atol=0.03)
    assert torch.allclose(fit.factor @ fit.factor.T, covariance, atol=0.05)
    # A label's offset and the bias are not identifiable; only their sum is.
    by_label = fit.weight[:, 5:] + fit.bias[:, None]
    assert torch.allclose(by_label, torch.tensor([[0.0, 5, -1], [1, 4, -1], [2, 3, 0], [3, 2, 0]]), atol=0.15)


def test_the_generator_starts_as_exactly_the_linear_gaussian() -> None:
    conditions, outlines, _, _ = known(500)
    fit = fit_linear_gaussian(conditions, outlines)
    generator = ConditionalGenerator(ConditionalGeneratorConfig(4, 8, hidden_dim=6, num_layers=2))
    generator.start_at(fit)
    noise = generator.draw(7, torch.Generator().manual_seed(1))
    expected = conditions[:7] @ fit.weight.T + fit.bias + noise @ fit.factor.T
    assert torch.allclose(generator(noise, conditions[:7]), expected, atol=1e-5)
    generator(noise, conditions[:7]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_an_untrained_flow_is_the_linear_gaussian_and_a_trained_one_reads_the_condition() -> None:
    conditions, outlines, _, _ = known(500)
    torch.manual_seed(0)
    flow = ConditionalFlow(ConditionalGeneratorConfig(4, 8, hidden_dim=6, num_blocks=2, num_steps=2))
    flow.start_at(fit_linear_gaussian(conditions, outlines))
    noise = flow.draw(7, torch.Generator().manual_seed(1))
    assert torch.equal(flow(noise, conditions[:7]), flow.start(noise, conditions[:7]))
    torch.nn.init.normal_(flow.velocity.last.weight)
    shift = flow(noise, conditions[:7]) - flow.start(noise, conditions[:7])
    others = flow(noise, conditions[7:14]) - flow.start(noise, conditions[7:14])
    assert shift.abs().mean() > 0.1 and (shift - others).abs().mean() > 0.1


def test_flow_matching_learns_a_distribution_that_is_not_gaussian_given_the_condition() -> None:
    torch.manual_seed(0)
    conditions, sign = torch.randn(4000, 1), torch.randint(2, (4000, 1)) * 2.0 - 1
    outlines = torch.cat([conditions * sign, conditions.abs() + 0.1 * torch.randn(4000, 1)], dim=1)
    flow = ConditionalFlow(ConditionalGeneratorConfig(2, 1, hidden_dim=64, num_blocks=2, num_steps=4))
    flow.start_at(fit_linear_gaussian(conditions, outlines))
    optimizer = torch.optim.Adam(flow.velocity.parameters(), 3e-3)

    def errors(drawn: torch.Tensor) -> list[float]:
        """Return the mean distance from the nearer of the two points that each condition has, in both dimensions."""
        near = torch.cat([drawn[:, :1].abs() - conditions.abs(), drawn[:, 1:] - conditions.abs()], dim=1)
        return near.abs().mean(dim=0).tolist()

    assert min(errors(flow(torch.randn(4000, 2), conditions))) > 0.45
    for _ in range(300):
        rows = torch.randint(4000, (256,))
        begin = flow.start(torch.randn(256, 2), conditions[rows])
        loss = flow_matching_loss(flow.velocity_given(conditions[rows]), begin, outlines[rows], torch.rand(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = flow(torch.randn(4000, 2), conditions)
    assert max(errors(drawn)) < 0.3
    assert 0.3 < float((drawn[:, 0] * conditions[:, 0] > 0).float().mean()) < 0.7, "both points are as likely"


def test_the_critics_score_is_linear_in_the_embedded_condition_and_mixes_no_examples() -> None:
    torch.manual_seed(0)
    critic = ProjectionCritic(4, 6, hidden_dim=8, num_layers=2)
    outlines, conditions, one, other = torch.randn(5, 4), torch.randn(5, 6), torch.randn(5, 8), torch.randn(5, 8)
    zero = critic.score(outlines, torch.zeros(5, 8))
    both = critic.score(outlines, 2 * one - 3 * other) - zero
    assert torch.allclose(both, 2 * (critic.score(outlines, one) - zero) - 3 * (critic.score(outlines, other) - zero),
                          atol=1e-5)
    assert not torch.allclose(both, torch.zeros(5), atol=1e-3)
    alone = torch.cat([critic(outlines[row:row + 1], conditions[row:row + 1]) for row in range(5)])
    assert torch.allclose(critic(outlines, conditions), alone, atol=1e-6)


def test_the_energy_score_is_least_for_the_true_distribution() -> None:
    torch.manual_seed(0)
    observed = torch.randn(4000, 3)
    scores = {scale: float(energy_score(scale * torch.randn(4000, 4, 3), observed).mean()) for scale in (0.0, 0.5, 1.0, 2.0)}
    assert min(scores, key=scores.__getitem__) == 1.0
    draws = torch.tensor([[[0.0], [2.0]]])
    assert energy_score(draws, torch.tensor([[1.0]])).tolist() == [0.0]  # 1 away, 2 apart


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 groups of 5 sentences of the embedded grammar."""
    path = tmp_path_factory.mktemp("captions") / "captions.txt"
    path.write_text("\n".join(grammar.sentences(500, seed=6)) + "\n")
    return path


@pytest.fixture(scope="module")
def arguments(captions: Path, recurrent_encoder: Path) -> list[str]:
    (options := captions.with_name("options.toml")).write_text("checkpoint_every = 5\n")
    return ["conditional", "--preset", "tiny", "--config", str(options), "--corpus", str(captions), "--group-lines",
            str(GROUP), "--encoder", f"recurrent:{recurrent_encoder}", "--decoder-steps", "10", "--evaluator-steps", "5",
            "--gan-steps", "10", "--num-evaluation", "20"]


@pytest.fixture(scope="module")
def run(arguments: list[str], run_module: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("conditional")
    done = run_module("train", *arguments, "--runs", runs, "--out", runs / "run", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "Texts written for conditions" in done.stdout
    return runs / "run"


@pytest.fixture(scope="module")
def loaded(run: Path) -> Pipeline:
    return outlines.load(run, "cpu")


def test_the_report_compares_with_controls_and_real_text(run: Path) -> None:
    rows = {row["source"]: row for row in json.loads((run / "report.json").read_text())["own"]}
    assert list(rows) == ["generator", "linear", "nearest training group", "copy of the condition",
                          "another real text, decoded", "the condition itself", "random real text", "another real text"]
    assert rows["the condition itself"]["similarity_condition"] == pytest.approx(1, abs=1e-5)
    assert rows["generator"]["num_samples"] == 5 * rows["another real text"]["num_samples"] == 20
    assert all(row["best_bleu"] >= row["bleu"] for row in rows.values() if "best_bleu" in row)
    assert {source for source, row in rows.items() if "energy_score" in row} == set(list(rows)[:4])


def test_resumed_amid_the_gan_equals_uninterrupted(run: Path, run_module: Command) -> None:
    resumed = run.parent / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "model")
    first, *later = sorted((resumed / "checkpoints").iterdir())
    assert first.name == "1-00000005"
    for checkpoint in later:
        shutil.rmtree(checkpoint)
    done = run_module("train", "--resume", resumed, "--quiet")
    assert done.returncode == 0, done.stderr
    assert weights(resumed) == weights(run)


@pytest.mark.parametrize("generator", ["flow", "flow-gan"])
def test_a_flow_is_trained_compared_resumed_and_used(generator: str, arguments: list[str], captions: Path,
                                                     tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (options := tmp_path / "options.toml").write_text("checkpoint_every = 5\nflow_steps = 10\nflow_validate_every = 5\n")
    given = [str(options) if word.endswith("options.toml") else word for word in arguments]
    if generator == "flow":
        place = given.index("--gan-steps")
        del given[place:place + 2]
    assert train([*given, "--generator", generator, "--runs", str(tmp_path), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    rows = {row["source"]: row for row in json.loads((tmp_path / "run" / "report.json").read_text())["own"]}
    assert rows["generator"]["energy_score"] != rows["linear"]["energy_score"]
    resumed = shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(resumed / "model")
    for checkpoint in sorted((resumed / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    assert train(["--resume", str(resumed), "--quiet"]) == 0
    assert weights(resumed) == weights(tmp_path / "run")
    capsys.readouterr()
    assert generate([str(resumed), "--condition", written(tmp_path / "one.txt", ["Two dogs run."]), "--max-len", "8"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_generate_writes_for_each_condition(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def generated(*arguments: object) -> list[str]:
        assert generate([str(run), "--max-len", "8", *map(str, arguments)]) == 0
        return capsys.readouterr().out.splitlines()

    conditions = ["A man is cooking.", "Two dogs run.", "A man is cooking."]
    file = written(tmp_path / "conditions.txt", conditions)
    one = generated("--condition", file)
    several = generated("--condition", file, "--num", 2, "--format", "jsonl")
    assert len(one) == 3
    assert [json.loads(line)["condition"] for line in several] == [text for text in conditions for _ in range(2)]
    structured = tmp_path / "conditions.JSONL"
    structured.write_text("".join(json.dumps({"condition": text}) + "\n" for text in conditions))
    assert generated("--condition", structured) == one
    assert len(generated("--num", 3)) == 3, "without one, conditions of the training split"


def test_a_sentence_depends_on_seed_number_and_condition_alone(loaded: Pipeline) -> None:
    sampling = SamplingConfig(max_len=6)
    conditions = [Condition(f"A man reads book {number}.") for number in range(9)]
    texts = [sentence.text for _, sentence in loaded.given(conditions, 2, sampling=sampling)]
    assert [sentence.text for _, sentence in loaded.given(conditions[:3], 2, sampling=sampling, batch_size=4)] == texts[:6]
    assert [sentence.text for _, sentence in loaded.given(conditions, 2, seed=2, sampling=sampling)] != texts
    greedy = SamplingConfig(temperature=0, max_len=6)
    assert len(list(loaded.given(conditions, 2, sampling=greedy, source="linear", scored=True))) == 18


@pytest.mark.parametrize(("content", "flags", "message"), [  # X
    ("not json\n", [], 'line 1: The condition is not valid. Write {"condition"'),
    ('{"condition": "A dog.", "label": "verse"}\n', [], "Label 'verse' has no effect: this run was trained without labels"),
    ('{"condition": "A dog."}\n', ["--unique"], "no effect with --condition"),
    ('{"condition": "A dog."}\n', ["--source", "mixture"], "Choose from generator, linear"),
    ('{"condition": "A dog."}\n', ["--num", "0"], "--num: must be a whole number from 1"),
], ids=range(5))
def test_bad_conditions_are_one_line_and_status_2(content: str, flags: list[str], message: str, run: Path,
                                                  tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conditions.jsonl").write_text(content)
    assert generate([str(run), "--condition", str(tmp_path / "conditions.jsonl"), *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and message in shown.err and shown.err.count("\n") == 1


def test_a_run_of_pairs_does_not_need_its_corpus(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = shutil.copytree(run, tmp_path / "runs" / "run")
    described = json.loads((run / "run.json").read_text())
    shutil.copytree(described["cache"], tmp_path / "runs-cache")
    described["corpus"]["corpus"] = [str(tmp_path / "gone.txt")]
    (moved / "run.json").write_text(json.dumps({**described, "cache": str(tmp_path / "gone")}))
    (moved / "report.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert train(["--resume", "runs/run", "--quiet"]) == 0
    old, new = (json.loads((directory / "report.json").read_text())["own"] for directory in (run, moved))
    assert old == new
    shutil.rmtree(next((tmp_path / "runs-cache").glob("pairs-*")))
    assert train(["--resume", "runs/run", "--quiet"]) == 2


def test_another_family_takes_no_condition(loaded: Pipeline) -> None:
    model = LanguageModel(GRUConfig(9, 0, embed_dim=4, hidden_dim=4))
    with pytest.raises(OutlinesError, match="'lm' models do not accept conditions"):
        list(Pipeline(loaded.run, loaded.description, model, loaded.tokenizer).given([]))


def configured(family: str, **flags: Any) -> RunConfig:
    method = find_method(family)
    return resolve(family, method.config_class, method.presets, "tiny", None, flags)


def test_options_of_pairs(captions: Path) -> None:
    assert configured("conditional", corpus=("pairs.jsonl",)).corpus.condition_column == "condition"
    assert configured("conditional", corpus=("lines.txt",), group_lines=5).corpus.condition_column == ""
    for family, flags, message in (("outlines", {"group_lines": 5}, "does not learn from pairs"),
                                   ("conditional", {}, "The built-in corpus has none")):
        with pytest.raises(OutlinesError, match=message):
            configured(family, **({"corpus": (str(captions),)} if flags else {}), **flags)


@pytest.fixture(scope="module")
def labelled(recurrent_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Dataset]:
    """A corpus of labelled pairs, each condition with two texts, opened."""
    directory = tmp_path_factory.mktemp("labelled")
    sentences = list(grammar.sentences(450, seed=7))
    path = records(directory / "pairs.jsonl.gz", [
        {"condition": sentences[3 * number], "label": label, "text": sentences[3 * number + place]}
        for number in range(150) for place, label in ((1, "first"), (2, "second"))])
    config = configured("conditional", corpus=(path,), label_column="label", encoder=f"recurrent:{recurrent_encoder}")
    return config, open_dataset(config.corpus, config.model.encoder_name(), directory / "cache", torch.device("cpu"),
                                Ranks(), Reporter(quiet=True))


def test_labels_reach_generator_and_critic(labelled: tuple[RunConfig, Dataset]) -> None:
    config, data = labelled
    torch.manual_seed(0)
    method = ConditionalMethod(config, data, bfloat16=False)
    method.stages[1].begin(lambda *_: None)
    model = method.model
    assert data.pairing is not None and set(model.labels) == {"first", "second"} == set(data.pairing.labels)
    pairs = data.pairing.splits["train"]
    targets = pairs.targets[:6]
    conditions = conditions_of(model, data, "train", PairRows(targets, pairs.conditions(targets, np.zeros(6))))
    assert conditions[:, -2:].argmax(dim=1).tolist() == pairs.labels[targets].tolist()
    assert (conditions[:, -2:].sum(dim=1) == 1).all()
    noise = torch.zeros(6, 16)
    assert not torch.allclose(model.given(conditions, noise), model.given(conditions[:, [*range(16), 17, 16]], noise))
    assert model.number_of(model.labels[1]) == 1
    for label, message in (("third", "Use one of first, second"), (None, "has no label.*Use one of first, second")):
        with pytest.raises(OutlinesError, match=message):
            model.number_of(label)


def test_a_step_trains_on_pairs_and_leaves_the_control_alone(labelled: tuple[RunConfig, Dataset]) -> None:
    config, data = labelled
    torch.manual_seed(0)
    method = ConditionalMethod(config, data, bfloat16=False)
    method.stages[1].begin(lambda *_: None)
    linear = {name: tensor.clone() for name, tensor in method.model.linear.state_dict().items()}
    assert data.pairing is not None
    batch = method.stages[1].game.real(data.batch(np.arange(32), Ranks()))
    assert isinstance(batch, PairBatch) and batch.outlines is not None and batch.conditions.shape == (32, 18)
    texts = {tuple(row) for row in data.outlines("train", data.pairing.splits["train"].targets).tolist()}
    assert {tuple(row) for row in batch.outlines.tolist()} <= texts, "only texts are written, no conditions"
    before = [parameter.clone() for parameter in method.stages[1].generator.parameters()]
    for step in range(2):
        terms = method.stages[1].step(step, data.batch(np.arange(32) + step, Ranks()), Update(Ranks(), 1.0))
    assert all(bool(term.isfinite()) for term in terms.values())
    assert any(not torch.equal(old, new) for old, new in zip(before, method.stages[1].generator.parameters(), strict=True))
    assert all(torch.equal(tensor, linear[name]) for name, tensor in method.model.linear.state_dict().items())
    found = method.stages[1].validate()
    figures = found.figures
    assert found.criterion == figures["valid/conditional_shortfall"]
    assert figures["valid/conditional_shortfall"] >= figures["valid/outline_shortfall"]


def test_a_condition_with_one_text_of_a_label_has_it_as_its_reference(labelled: tuple[RunConfig, Dataset]) -> None:
    config, data = labelled
    torch.manual_seed(0)
    method = ConditionalMethod(config, data, bfloat16=False)
    method.stages[1].begin(lambda *_: None)
    comparison = Comparison(config, method.model.eval(), data)
    own = torch.from_numpy(data.stores["test"].rows(comparison.found.targets))
    torch.testing.assert_close(torch.stack(comparison.outlines), torch.nn.functional.normalize(own)[:, None])
    rows = {row["source"]: row for row in comparison.rows(Reporter(quiet=True))}
    assert not {"another real text", "another real text, decoded"} & set(rows)
    assert 0 <= rows["generator"]["own_group"] <= 1
