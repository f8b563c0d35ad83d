"""Every family is trained, evaluated and used on a device without float64."""

from pathlib import Path

import pytest
import torch

import outlines
from outlines.decoding.sample import SamplingConfig
from outlines.devices import float64
from outlines.inference.pipeline import Pipeline
from outlines.inference.rejection import fit_slope, threshold
from outlines.metrics.outlines import frechet_distance, knn_precision_recall, two_sample_accuracy
from tests.stand_in import is_on_mps, mps  # noqa: F401
from train.__main__ import main
from train.method import all_methods
from train.session import run_config

SMALL = ["--preset", "tiny", "--decoder-steps", "2", "--evaluator-steps", "2", "--num-evaluation", "20", "--max-len", "5",
         "--quiet"]
OWN = {"outlines": ["--gan-steps", "2", "--num-offsets", "4"], "conditional": ["--gan-steps", "2", "--group-lines", "5"]}


@pytest.mark.usefixtures("mps")
def test_the_stand_in_refuses_what_the_device_refuses() -> None:
    layer = torch.nn.Linear(3, 2).to("mps")
    assert layer.weight.device.type == "mps" and layer(torch.ones(1, 3, device="mps")).device.type == "mps"
    for wrong in (layer.weight.double, layer.weight.detach().numpy, lambda: layer(torch.ones(1, 3)),
                  lambda: torch.ones(2, dtype=torch.float64, device="mps")):
        with pytest.raises((TypeError, AssertionError)):
            wrong()
    assert not is_on_mps(float64(layer.weight)) and float64(layer.weight).dtype == torch.float64


@pytest.mark.usefixtures("mps")
@pytest.mark.parametrize("family", sorted(all_methods()))
def test_a_device_without_float64_trains_and_reports_every_family(family: str, tiny_corpus: Path, recurrent_encoder: Path,
                                                                  tmp_path: Path) -> None:
    encoder = ["--encoder", f"recurrent:{recurrent_encoder}"] if family in OWN else []
    run = tmp_path / "run"
    assert main([family, *SMALL, "--corpus", str(tiny_corpus), *encoder, *OWN.get(family, []), "--out", str(run),
                 "--runs", str(tmp_path / "runs"), "--device", "mps"]) == 0
    assert run_config(run).training.device == "mps" and (run / "report.json").exists()


@pytest.mark.usefixtures("mps")
def test_a_device_without_float64_uses_a_run(tiny_run: Path) -> None:
    run: Pipeline = outlines.load(tiny_run, "auto")
    assert run.device.type == "mps"
    short = SamplingConfig(0.7, top_k=5, top_p=0.9, max_len=4)
    for rejection in (1.0, 1.1):
        assert len(list(run.sentences(3, 1, short, scored=True, rejection=rejection))) == 3
    assert len(run.decode(run.encode(["A dog runs.", "A man sings."]), SamplingConfig(beam=2, max_len=4))) == 2
    assert len(run.reconstruct(["A dog runs."])) == len(run.nearest(["A dog runs."], 1)) == 1
    assert run.mean(["A dog runs."]).shape == run.analogy("A dog.", "A cat.", "A man.").shape
    for kind in {*run.walks} - {"noise"}:  # its generator is inverted by vmap
        assert run.interpolate("A dog runs.", "A man sings.", kind, 3, short).points


@pytest.mark.usefixtures("mps")
def test_metrics_of_outlines_on_a_device_without_float64() -> None:
    real, fake = torch.randn(2, 30, 3).to("mps")
    assert frechet_distance(real, fake) > 0 and knn_precision_recall(real, fake).precision > 0
    assert 0 <= two_sample_accuracy(real, fake, device=real.device).accuracy <= 1
    assert threshold(real[:, 0], 2.0) and fit_slope(real[:, 0], fake[:, 0]) is not None
