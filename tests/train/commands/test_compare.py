"""`python -m train compare` as a user runs it: killed, gone on with, and looked at in a real TensorBoard."""

import json
import math
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from outlines.errors import OutlinesError
from tests.conftest import environment
from tests.train.test_training import start, wait_for, weights
from train.__main__ import main
from train.commands.compare import LAYOUT
from train.commands.train import parse, plan_of
from train.runtime.run_directory import read_lines, runs_of

MEMBERS = ["outlines", "lm", "vae", "vae-cyclical"]
Ask = Callable[..., Any]


def train(*arguments: object) -> None:
    """A command in this process, which has the imports behind it, on one thread, as the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main([*map(str, arguments), "--quiet"]) == 0
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def comparison(tiny_arguments: list[str], tiny_run: Path) -> Path:
    """A comparison, killed while its plain VAE trained, and gone on with."""
    directory = tiny_run.parent / "comparison"
    process = start(["compare", *tiny_arguments[1:], "--families", ",".join(MEMBERS), "--num-evaluation", "30", "--runs",
                     str(tiny_run.parent), "--out", str(directory), "--quiet"])
    wait_for(lambda: len(list(directory.glob("vae/checkpoints/[0-9]*"))) >= 2, process)
    process.kill()
    process.wait()
    assert not (directory / "report.json").exists()
    train("--resume", directory)
    return directory


def test_the_report_of_a_member_names_its_remedy(comparison: Path) -> None:
    for member in MEMBERS:
        assert f"| {member} " in (comparison / member / "report.md").read_text().split("Held-out sentences")[1]


@pytest.fixture(scope="module")
def tensorboard(comparison: Path) -> Iterator[Ask]:
    """Start TensorBoard on the comparison; return a function that queries it: ask("plugin/…", parameter="…")."""
    process = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", str(comparison), "--port", "0"],
                               env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        found = next(match for line in process.stderr if (match := re.search(r"http://\S+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # So that it never waits to be read.

        def ask(path: str, body: Any = None, **parameters: object) -> Any:
            url = f"{found[0]}data/{path}?{urllib.parse.urlencode(parameters)}"
            request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read().decode()
                return json.loads(text) if "json" in answer.headers["Content-Type"] else text

        def loaded() -> bool:
            """Whether it has read every file of every run to its end: it reads on while it answers."""
            scalars, texts = ask("plugin/scalars/tags"), ask("plugin/text/tags")
            for run in MEMBERS:
                if not ({"norm/decoder", "evaluation/unique"} <= {*scalars.get(run, ())}
                        and "report/text_summary" in texts.get(run, ())):
                    return False
                lines = read_lines(comparison / run / "metrics.jsonl")
                last = max(line["examples"] for line in lines if "norm/decoder" in line)
                if ask("plugin/scalars/scalars", run=run, tag="norm/decoder")[-1][1] != last:
                    return False
            return sorted(ask("runs")) == sorted([".", *MEMBERS]) and "." in texts

        end = time.monotonic() + 60
        while not loaded():
            assert time.monotonic() < end, "the runs were never loaded"
            time.sleep(0.1)
        yield ask
    finally:
        process.kill()
        process.wait()


def test_killed_and_resumed_equals_uninterrupted(comparison: Path, tiny_run: Path, tiny_corpus: Path) -> None:
    """Of one run of the comparison after the other, each against the same run by itself, drift and all."""
    alone = tiny_run.parent / "vae-alone"
    train("vae", "--preset", "tiny", "--corpus", tiny_corpus, "--num-evaluation", 30, "--runs", tiny_run.parent, "--out",
          alone)
    assert weights(comparison / "vae") == weights(alone)
    assert weights(comparison / "outlines") == weights(tiny_run)
    both = (comparison / "vae", alone)
    lines = [[line for line in read_lines(run / "metrics.jsonl") if "valid/kl" in line] for run in both]
    assert lines[0] == lines[1] and ["valid/drift" in line for line in lines[0]] == [False, True, True]
    figures = [json.loads((run / "report.json").read_text())["reconstruction"] for run in both]
    assert figures[0] == figures[1]
    drifts = [dim["drift_mu"] for dim in json.loads((alone / "collapse.json").read_text())["dims"]]
    assert len(drifts) == 8 and all(drift > 0 for drift in drifts)


def test_options_are_passed_to_every_run_that_supports_them(comparison: Path) -> None:
    assert [run.name for run in runs_of(comparison)] == MEMBERS
    runs = {run.name: json.loads((run / "run.json").read_text()) for run in runs_of(comparison)}
    assert [run["family"] for run in runs.values()] == ["outlines", "lm", "vae", "vae"]
    assert len({json.dumps([run["corpus"], run["training"], run["model"]["decoder_steps"]]) for run in runs.values()}) == 1
    assert runs["outlines"]["training"]["num_evaluation"] == 30
    assert runs["vae"]["model"] | {"kl_anneal": "cyclical"} == runs["vae-cyclical"]["model"]
    assert runs["vae-cyclical"]["preset"] == "tiny vae-cyclical"


def test_the_report_puts_the_runs_own_figures_side_by_side(comparison: Path) -> None:
    data, text = json.loads((comparison / "report.json").read_text()), (comparison / "report.md").read_text()
    own = {run.name: json.loads((run / "report.json").read_text()) for run in runs_of(comparison)}
    shown = {(row["source"], row["temperature"]): row["figures"] for row in data["rows"]}
    for label, source in (("outlines", "generator"), ("lm", "lm"), ("vae", "prior"), ("vae-cyclical", "prior")):
        for row in own[label]["rows"]:
            if row["source"] == source:
                figures = shown[label, row["temperature"]]
                assert figures["forward_nll_per_token"]["values"] == [row["forward_nll_per_token"]]
    assert [label for label, _ in shown].count("lm") == 2, "no run but the language model's own shows one"
    rebuilt = {row["source"]: row for row in data["reconstruction"]}
    assert list(rebuilt) == MEMBERS
    for label, row in rebuilt.items():
        for key, figure in row["figures"].items():
            assert figure["values"] == [own[label]["reconstruction"][key]]
    # A quantity has one key in every family, and a family does not report quantities that it cannot compute.
    keys = {label: {key for key in row["figures"] if key.endswith("nll_per_token")} for label, row in rebuilt.items()}
    assert keys == {"outlines": {"test/reconstruction_nll_per_token"}, "lm": {"test/nll_per_token"},
                    "vae": {"test/nll_per_token", "test/reconstruction_nll_per_token"}, "vae-cyclical": keys["vae"]}
    vae = rebuilt["vae"]["figures"]
    assert vae["test/mutual_information"]["mean"] <= vae["test/mutual_information_ceiling"]["mean"] == math.log(30)
    assert vae["test/nll_per_token"]["mean"] <= vae["test/negative_elbo_per_token"]["mean"]
    for label in ("outlines", "vae", "vae-cyclical"):
        [verdict] = rebuilt[label]["verdicts"]
        assert re.search(rf"\| {label} +\| {re.escape(verdict)} +\|", text)
        assert f"{label}: The vector is {verdict}. " in text
    samples = text.split("## Samples")[1]
    assert all(f" | {member} |" in samples for member in ["real text", *MEMBERS])
    assert "verdicts" not in rebuilt["lm"] and "lm: The vector" not in text
    assert (comparison / "collapse.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_resuming_a_finished_comparison_changes_nothing(comparison: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in comparison.rglob("*") if file.is_file()
                and file.name != "lock" and file.parent != comparison}

    before, report = state(), (comparison / "report.md").read_bytes()
    train("--resume", comparison)
    assert state() == before and (comparison / "report.md").read_bytes() == report
    assert len(list(comparison.glob("events.out.tfevents.*"))) == 1


def test_tensorboard_serves_the_layout_and_every_chart_has_curves(tensorboard: Ask) -> None:
    layout = tensorboard("plugin/custom_scalars/layout")
    served = {category["title"]: [chart["multiline"]["tag"] for chart in category["chart"]]
              for category in layout["category"]}
    generators = served.pop("generator and critic")  # of the outlines' own run, with its controls' lines
    assert [[tag] for tag in ("valid/precision", "valid/recall")] == [[tags[0].split("(")[0]] for tags in generators[:2]]
    assert served == {name: [tags for _, tags in charts.values()] for name, charts in LAYOUT.items()}
    assert [name.split(": ")[1] for name in served] == ["collapse", "quality", "diversity"]
    for charts in served.values():
        for [pattern] in charts:
            curves = {run: tensorboard("plugin/custom_scalars/scalars", run=run, tag=pattern)["tag_to_events"]
                      for run in MEMBERS}
            assert sum(bool(events) for events in curves.values()) >= 2, f"{pattern} overlays nothing"


def test_tensorboard_overlays_what_the_runs_logged(tensorboard: Ask, comparison: Path) -> None:
    tags = {run: set(found) for run, found in tensorboard("plugin/scalars/tags").items()}
    assert tags["vae"] == tags["vae-cyclical"]
    assert {"valid/reconstruction_nll_per_token", "valid/latent_gap_per_token"} <= tags["outlines"] & tags["vae"]
    assert "valid/nll_per_token" in tags["lm"] & tags["vae"] and "valid/nll_per_token" not in tags["outlines"]
    assert {"valid/kl", "valid/mutual_information", "valid/active_units", "valid/drift"} <= tags["vae"] - tags["outlines"]
    everywhere = set.intersection(*(tags[run] for run in MEMBERS))
    assert {"evaluation/forward_nll_per_token", "evaluation/distinct_2"} <= everywhere
    lines = read_lines(comparison / "vae" / "metrics.jsonl")
    served = tensorboard("plugin/scalars/scalars", run="vae", tag="valid/kl")
    assert [(step, value) for _, step, value in served] == [
        (line["examples"], pytest.approx(line["valid/kl"])) for line in lines if "valid/kl" in line]
    by_temperature = tensorboard("plugin/scalars/scalars", run="lm", tag="evaluation/distinct_2")
    assert [step for _, step, _ in by_temperature] == [50, 100]


def test_tensorboard_shows_samples_distributions_and_pictures(tensorboard: Ask) -> None:
    texts = tensorboard("plugin/text/tags")
    assert all({"samples/text_summary", "report/text_summary"} <= set(texts[run]) for run in MEMBERS)
    assert "<li>" in tensorboard("plugin/text/text", run="vae", tag="samples/text_summary")[0]["text"]
    assert "Is the vector used?" in tensorboard("plugin/text/text", run=".", tag="comparison/report/text_summary")[0]["text"]
    histograms = tensorboard("plugin/histograms/tags")
    assert set(histograms) == {"vae", "vae-cyclical"} and set(histograms["vae"]) == {"posterior/mu", "posterior/sigma"}
    images = tensorboard("plugin/images/tags")
    assert "posterior/signal_noise" in images["vae"] and "comparison/collapse" in images["."]
    over_time = tensorboard("plugin/images/images", run="vae", tag="posterior/signal_noise", sample=0)
    assert len({image["step"] for image in over_time}) == 3, "one for each validation"


def test_tensorboard_tabulates_options_and_results(tensorboard: Ask) -> None:
    status = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    groups = tensorboard("plugin/hparams/session_groups", {"experimentName": "", "allowedStatuses": status, "colParams": [],
                                                           "startIndex": 0, "sliceSize": 100})["sessionGroups"]
    assert {group["name"] for group in groups} == set(MEMBERS)
    options = {group["name"]: group["hparams"] for group in groups}
    assert options["vae-cyclical"]["kl_anneal"] == "cyclical" and options["vae"]["kl_anneal"] == "none"
    results = {group["name"]: {value["name"]["tag"] for value in group["metricValues"]} for group in groups}
    assert all("evaluation/forward_nll_per_token" in found for found in results.values())
    assert "test/latent_gap_per_token" in results["outlines"] & results["vae"], "the list of another family replaced it"
    listed = tensorboard("plugin/hparams/experiment", {})["hparamInfos"]
    assert {"kl_anneal", "gan_steps", "dropout"} <= {option["name"] for option in listed}


def test_tensorboard_projects_vectors(tensorboard: Ask, comparison: Path) -> None:
    assert sorted(tensorboard("plugin/projector/runs")) == ["outlines", "vae", "vae-cyclical"]
    for run, width, kinds in (("outlines", 16, {"real", "generator", "mixture", "gaussian"}),
                              ("vae", 8, {"real: mu", "real: drawn z", "prior"})):
        [embedding] = tensorboard("plugin/projector/info", run=run)["embeddings"]
        num, dims = embedding["tensorShape"]
        metadata = tensorboard("plugin/projector/metadata", run=run, name=embedding["tensorName"], num_rows=num)
        header, *rows = [line.split("\t") for line in metadata.splitlines()]
        assert header == ["set", "sentence"] and dims == width and len(rows) == num
        assert {kind for kind, _ in rows} == kinds
    real = [sentence for kind, sentence in rows if kind == "real: mu"]
    assert len(real) > 30 and all(sentence[0].isupper() for sentence in real)


def test_seeds_of_a_comparison_are_runs_of_runs(tiny_run: Path, tiny_arguments: list[str]) -> None:
    directory = tiny_run.parent / "comparison-seeds"
    train("compare", *tiny_arguments[1:], "--families", ",".join(MEMBERS), "--num-evaluation", 20, "--decoder-steps", 4,
          "--gan-steps", 4, "--seeds", "1,2", "--runs", tiny_run.parent, "--out", directory)
    assert [str(run.relative_to(directory)) for run in runs_of(directory)] == [
        f"{name}/seed-{seed}" for name in MEMBERS for seed in (1, 2)]
    assert weights(directory / "vae" / "seed-1") != weights(directory / "vae" / "seed-2")
    text = (directory / "report.md").read_text()
    assert "mean ± standard deviation over 2 seeds" in text and "The vector is" not in text
    rebuilt = json.loads((directory / "report.json").read_text())["reconstruction"]
    row = next(row for row in rebuilt if row["source"] == "vae")
    assert len(row["verdicts"]) == 2 and re.search(r"\| vae +\| [12] × ", text)
    assert (directory / "vae" / "report.md").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--families", "outlines,vae-annealled"], "Did you mean 'vae-annealed'"),
    (["--preset", "vae-annealed"], "unknown preset 'vae-annealed'"),
    (["--kl-weight", "2"], "--kl-weight has no effect here. Only the families vae and zforcing have it. Leave it out."),
    (["--resume", "nowhere", "--families", "lm,vae-bow"], "--families has no effect with --resume"),
    (["--seed", "1", "--seeds", "1,2"], "--seed has no effect with --seeds"),
])
def test_bad_options_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def compared(families: str, *arguments: str) -> dict[str, str]:
    plan = plan_of(parse(["compare", "--families", families, *arguments]))
    assert plan.groups["."][1] == list({name.split("/")[0]: None for name in plan.runs})
    return {name: f"{config.family}: {preset}" for name, (preset, config) in plan.runs.items()}


def test_families_to_compare_are_named() -> None:
    assert compared("outlines,gaussian,mixture,lm,vae,vae-freebits,vae-lagging,arae", "--preset", "small") == {
        "outlines": "outlines: small", "lm": "lm: small", "vae": "vae: small", "vae-freebits": "vae: small vae-freebits",
        "vae-lagging": "vae: small vae-lagging", "arae": "arae: small"}
    assert list(compared("lm,outlines,arae")) == ["outlines", "lm", "arae"], "real text's row needs outlines"
    assert compared("arae, gaussian", "--seeds", "1,2") == {"arae/seed-1": "arae: default", "arae/seed-2": "arae: default"}


@pytest.mark.parametrize(("families", "arguments", "message"), [
    ("lm,mixture", [], "mixture is a fitted baseline of outlines. Add this family."),
    ("lm,area", [], "Did you mean 'arae'"), ("encoder,lm", [], "unknown name"),
    ("lm,lm", [], "contains the same name twice"),
    ("lm,arae-snli", [], "arae-snli and lm use different corpora or tokenizers"),
    ("lm,vae", ["--gan-steps", "3"], "--gan-steps has no effect on lm, vae")])
def test_families_that_cannot_be_compared_are_named(families: str, arguments: list[str], message: str) -> None:
    with pytest.raises(OutlinesError, match=message):
        compared(families, *arguments)


@pytest.mark.parametrize("damage", ["[]", "{", '{"kind": "seeds", "runs": []}', '{"kind": "seeds", "runs": ["../.."]}',
                                    '{"kind": "all", "runs": ["seed-1"]}', '{"kind": "seeds", "runs": [1]}'])
def test_a_damaged_list_of_runs_is_one_line(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs.json").write_text(damage)
    assert main(["--resume", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and "damaged" in errors and errors.count("\n") == 1


def test_the_runs_of_a_comparison_can_be_evaluated(comparison: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--encoder", "none", "--temperatures", "1", "--sources", "lm,prior", "--num-samples", "30",
               "--reverse-steps", "2", "--out", tmp_path / "evaluation"]
    train("evaluate", comparison, *options)
    shown = capsys.readouterr().out
    assert "Is the vector used?" in shown and "| vae-cyclical " in shown
    data = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    rows = {row["source"]: row for row in data["reconstruction"]}
    assert list(rows) == MEMBERS and rows["vae"]["figures"]["num_draws"]["mean"] == 100
    own = json.loads((comparison / "vae" / "report.json").read_text())["reconstruction"]
    # More draws, a tighter bound; whatever needs none is the same.
    assert rows["vae"]["figures"]["test/nll_per_token"]["mean"] < own["test/nll_per_token"]
    assert rows["vae"]["figures"]["test/kl"]["mean"] == own["test/kl"]
