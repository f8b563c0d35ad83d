"""From rows to tables, gaps and files, with figures that can be checked by hand."""

import json
import math
from pathlib import Path

import pytest

from train.evaluation.curves import curves, gaps, picture, render_gaps, write_curves
from train.evaluation.tables import (
    COLUMNS,
    Column,
    Figures,
    Line,
    flat_options,
    num_seeds,
    over_seeds,
    reconstruction_section,
    samples_section,
    table,
    to_json,
)


def curve(label: str, *seeds: list[tuple[float, float]]) -> list[Line]:
    """Lines of a label at T = 1, 2, …: for each seed its (reverse nll, forward nll) at each of them."""
    return [Line(label, float(index + 1), {
        "reverse_nll_per_token": Figures(tuple(points[index][0] for points in seeds)),
        "forward_nll_per_token": Figures(tuple(points[index][1] for points in seeds))}) for index in range(len(seeds[0]))]


def test_mean_and_deviation_by_hand() -> None:
    figures = Figures((1.0, 2.0, 6.0))
    assert figures.mean == 3.0
    assert figures.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))  # over n - 1
    assert f"{figures:1}" == "3.0 ± 2.6"


def test_one_seed_has_no_deviation() -> None:
    assert Figures((1.25,)).deviation is None
    assert f"{Figures((1.25,)):1}" == "1.2" and f"{Figures((1.25,)):3}" == "1.250"


def test_rows_are_grouped_by_label_and_temperature_in_order() -> None:
    rows = [("b", {"temperature": 1.0, "unique": 0.5, "source": "b"}), ("a", {"temperature": None, "unique": 1}),
            ("b", {"temperature": 0.7, "unique": 0.1}), ("b", {"temperature": 1.0, "unique": 0.7})]
    lines = over_seeds(rows)
    assert [(line.label, line.temperature) for line in lines] == [("b", 1.0), ("a", None), ("b", 0.7)]
    assert [line.figures["unique"].values for line in lines] == [(0.5, 0.7), (1.0,), (0.1,)]
    assert all(set(line.figures) == {"unique"} for line in lines)


def test_a_figure_that_one_seed_lacks_is_not_averaged_over_the_others() -> None:
    lines = over_seeds([("a", {"temperature": 1.0, "copied": 0.1, "grammar_nll": 20.0}),
                        ("a", {"temperature": 1.0, "copied": 0.3})])
    assert set(lines[0].figures) == {"copied"}
    assert lines[0].figures["copied"].mean == pytest.approx(0.2)


def test_a_table_by_hand() -> None:
    lines = [Line("real text", None, {"unique": Figures((1.0,))}),
             Line("lm", 0.0, {"unique": Figures((0.25, 0.75)), "copied": Figures((0.5, 0.5))})]
    columns = Column("copied", "copied", 2, "also elsewhere"), Column("unique", "unique", 1), Column("bleu_4", "BLEU-4", 3)
    assert table(lines, columns).splitlines() == [
        "| source    | T      | copied      | unique    |",
        "|-----------|--------|-------------|-----------|",
        "| real text |        |             | 1.0       |",
        "| lm        | greedy | 0.50 ± 0.00 | 0.5 ± 0.4 |",
        "", "Copied: also elsewhere."]
    assert table(lines, columns, width=40).splitlines() == [
        "| source    | T      | copied      |",
        "|-----------|--------|-------------|",
        "| real text |        |             |",
        "| lm        | greedy | 0.50 ± 0.00 |",
        "", "Copied: also elsewhere."]


def test_samples_of_all_sources_side_by_side() -> None:
    rows = [("real text", {"samples": ["A | b.", "c"]}), ("lm", {"temperature": 0.0, "samples": ["x\ny", "*z*", "w"]}),
            ("lm", {"temperature": 1.0, "samples": ["u"]}), ("lm", {"temperature": 1.0, "samples": ["of another seed"]}),
            ("vae", {"temperature": 1.0, "unique": 1.0})]
    assert samples_section(over_seeds(rows)).splitlines()[4:] == [
        "Greedy", "",
        "|  | real text | lm |",
        "| --- | --- | --- |",
        r"| 1 | A \| b. | x y |",
        r"| 2 | c | \*z\* |",
        "| 3 |  | w |",
        "", "T = 1", "",
        "|  | real text | lm |",
        "| --- | --- | --- |",
        r"| 1 | A \| b. | u |",
        "| 2 | c |  |"]


def test_every_figure_has_one_column() -> None:
    assert len({column.title for column in COLUMNS.values()}) == len(COLUMNS)


def test_gan_verdict_are_written_out_for_one_seed_and_counted_for_several() -> None:
    def row(verdict: str, kl: float) -> dict[str, object]:
        return {"test/kl": kl, "test/negative_elbo_per_token": 2.0, "num_draws": 16, "verdict": verdict,
                "words": f"It is {verdict}.", "details": [f"Because {kl}."]}

    rows = [("vae", row("too weak", 0.5)), ("vae", row("used", 1.5)), ("vae", row("used", 1.0)), ("free", row("used", 8.0)),
            ("lm", {"test/nll_per_token": 3.0})]
    text = reconstruction_section(rows)
    first, second = text.split("Is the vector used?")
    assert "| lm     | 3.000     |" in first and "16 ± 0 " in first and "bound with this many draws" in first
    assert "| vae    | 2 × used, 1 × too weak | 1.00 ± 0.50 |" in second
    assert "| free   | used                   | 8.00        |" in second
    assert "free: It is used.\n\n- Because 8.0." in second and "vae: It is" not in second and "lm" not in second
    short = reconstruction_section(rows, width=60)
    assert "free: It is used." in short and "Because" not in short and max(map(len, short.splitlines())) <= 60
    assert to_json(over_seeds(rows))[0]["verdicts"] == ("too weak", "used", "used")
    assert "bound with" not in reconstruction_section(rows[-1:]) and "vector used" not in reconstruction_section(rows[-1:])


def test_num_seeds_in_words() -> None:
    one, two = curve("a", [(1, 1)]), curve("b", [(1, 1)], [(2, 2)])
    real = [Line("real text", None, {"unique": Figures((1.0,))})]
    assert num_seeds(real + one) == "one seed"
    assert num_seeds(real + two) == "mean ± standard deviation over 2 seeds"
    assert num_seeds(one + two) == ("mean ± standard deviation over 2 seeds, fewer in some rows, "
                                    "one in rows without a deviation")


def test_curves_need_a_temperature_and_a_reverse_nll() -> None:
    lines = [*curve("a", [(2, 4), (3, 1)], [(4, 8), (5, 3)]), Line("real text", None, {}),
             Line("a", 0.0, {"forward_nll_per_token": Figures((9.0, 9.0))})]
    assert curves(lines) == {"a": [(3, 6), (4, 2)]}
    assert curves(lines, seed=1) == {"a": [(4, 8), (5, 3)]}
    assert curves(lines, seed=2) == {}
    assert picture(lines).axes[0].get_legend_handles_labels()[1] == ["a"]


def test_the_gap_by_hand() -> None:
    """Two parallel lines one nat apart; a second seed half a nat apart."""
    low = curve("outlines", [(1, 3), (3, 1)], [(1, 3.5), (3, 1.5)])
    high = curve("lm", [(1, 4), (3, 2)], [(1, 4), (3, 2)])
    found = gaps(low + high, "lm")
    assert set(found) == {"outlines"} and found["outlines"] is not None
    assert found["outlines"].values == pytest.approx((1.0, 0.5))
    assert "- outlines: 0.750 ± 0.354 nats per token" in render_gaps(found, "lm")
    assert not gaps(low + high, "lm", "_ngram"), "another evaluator has figures of its own"
    against = gaps(low + high, "outlines")["lm"]
    assert against is not None and against.values == pytest.approx((-1.0, -0.5))


def test_curves_without_a_common_reverse_nll_are_not_compared() -> None:
    lines = curve("outlines", [(1, 3), (2, 1)]) + curve("lm", [(3, 4), (4, 2)])
    assert gaps(lines, "lm") == {"outlines": None}
    assert "- outlines: not comparable" in render_gaps(gaps(lines, "lm"), "lm")
    one_of_two = curve("outlines", [(1, 3), (2, 1)], [(3, 3), (4, 1)]) + curve("lm", *[[(3, 4), (4, 2)]] * 2)
    assert gaps(one_of_two, "lm") == {"outlines": None}


def test_labels_of_unequal_numbers_of_seeds_are_compared_by_their_means() -> None:
    lines = curve("outlines", [(1, 3), (3, 1)], [(1, 2), (3, 0)]) + curve("lm", [(1, 4), (3, 2)])
    found = gaps(lines, "lm")["outlines"]
    assert found is not None and found.values == pytest.approx((1.5,))


def test_the_same_figures_in_json_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    lines = [*curve("outlines: mixture", [(2, 4), (3, 1)], [(4, 8), (5, 3)]), *curve("lm", [(2, 4), (3, 1)])]
    theirs = tmp_path / "a-run" / "events.out.tfevents.1"
    theirs.parent.mkdir()
    theirs.touch()
    for _ in range(2):  # The second leaves nothing of the first.
        write_curves(tmp_path, lines)
    assert theirs.exists(), "somebody else's events are gone"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    data = json.loads(json.dumps(to_json(lines)))
    assert data[0] == {"source": "outlines: mixture", "temperature": 1.0, "figures": {
        "reverse_nll_per_token": {"mean": 3.0, "deviation": pytest.approx(2 ** 0.5), "values": [2.0, 4.0]},
        "forward_nll_per_token": {"mean": 6.0, "deviation": pytest.approx(8 ** 0.5), "values": [4.0, 8.0]}}}
    events = EventAccumulator(str(tmp_path / "tensorboard" / "outlines-mixture"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("evaluation/forward_nll_per_token")]
    assert written == [(100, 6.0), (200, 2.0)]


def test_options_become_words_and_numbers() -> None:
    config = {"family": "lm", "corpus": {"corpus": ["a.txt", "b.txt"], "strict": False}, "training": {"seed": 3},
              "model": {"dropout": 0.1}}
    assert flat_options(config) == {"family": "lm", "corpus": '["a.txt", "b.txt"]', "strict": False, "seed": 3,
                                    "dropout": 0.1}


def test_a_report_says_that_characters_count_as_words() -> None:
    row = {"num_sentences": 2, "test/reconstruction_bleu": 5.0, "test/reconstruction_chrf": 7.0}
    assert "every character counts as a word" in reconstruction_section([("vae", {**row, "unspaced": True})])
    text = reconstruction_section([("vae", {**row, "unspaced": False})])
    assert "every character" not in text and "| chrF |" in text
