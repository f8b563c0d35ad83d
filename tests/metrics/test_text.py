"""BLEU, self-BLEU, diversity, copying, lengths, temperature curves: by hand, against NLTK and sacreBLEU."""

import math
import random
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.util import ngrams as nltk_ngrams
from scipy.stats import wasserstein_distance

from outlines.corpus.tokenizer import train_tokenizer
from outlines.errors import OutlinesError
from outlines.metrics.bleu import References, bleu_scores, reconstruction_bleu, self_bleu_scores
from outlines.metrics.curves import efficient_points, interpolated_gap
from outlines.metrics.text import (
    NearestOverlap,
    copied_rate,
    distinct_n,
    diversity,
    length_distance,
    memorised_ngrams,
    nearest_overlap,
    separated,
    unique_rate,
    unspaced,
    words,
)

# Few distinct words, so that n-grams repeat within a sentence and between sentences, and lengths collide.
SENTENCES = st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=2, max_size=8)


def random_sentences(seed: int, number: int, vocabulary: int = 12) -> list[list[str]]:
    rng = random.Random(seed)
    return [[f"w{int(rng.paretovariate(0.7)) % vocabulary}" for _ in range(rng.randint(1, 15))]
            for _ in range(number)]


def split(*sentences: str) -> list[list[str]]:
    return [sentence.split() for sentence in sentences]


def nltk_mean(hypotheses: list[list[str]], references_of: list[list[list[str]]], n: int) -> float:
    method1 = SmoothingFunction().method1
    scores = [sentence_bleu(references, hypothesis, (1 / n,) * n, method1)
              for hypothesis, references in zip(hypotheses, references_of, strict=True)]
    return math.fsum(scores) / len(scores)


def test_words_separates_marks_and_keeps_hyphens_and_apostrophes_inside():
    assert words("A man's wet-nosed dog, “sits” -- on  the mat.") == [
        "a", "man's", "wet-nosed", "dog", ",", "“", "sits", "”", "-", "-", "on", "the", "mat", "."]
    assert words("A Dog's") == ["a", "dog's"]
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]  # combining marks are no punctuation
    assert words(" \n") == []


COPIES = ["A dog runs…", "ACME™ sells ½ of it²", "Ｈｅｌｌｏ， ｗｏｒｌｄ！", "the ﬁnal oﬃce", "Straße ﬂießt",
          "我喜欢你，很好！", "ｶﾀｶﾅのﾃﾞｰﾀ。", "สวัสดีครับ", "نعم، ﻻ؟", "cafe\u0301 and ①", "한국어 좋다", "a～b", "ΣΊΣΥΦΟΣ",
          "non\u00a0breaking\u200b space", "№ 5 ㎏ ㈱"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_verbatim_copy_is_a_copy_after_any_tokenizer(lowercase: bool, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(COPIES * 3, tmp_path / "spm.model", vocab_size=500, lowercase=lowercase)
    samples = tokenizer.lines(tokenizer.encode(COPIES))
    made, training = [words(text) for text in samples], [words(text) for text in COPIES]
    assert made == training
    assert copied_rate(made, training) == 1
    assert nearest_overlap(made, training) == NearestOverlap(1.0, 1.0)
    for text, sentence in zip(samples, COPIES, strict=True):
        assert reconstruction_bleu([text], [sentence]) == pytest.approx(100)


def test_a_character_of_a_script_without_spaces_is_a_word():
    assert words("我喜欢 tea。") == ["我", "喜", "欢", "tea", "。"]
    assert words("データだ") == ["デ", "ー", "タ", "だ"]
    assert words("สวัสดี") == ["ส", "วั", "ส", "ดี"]  # with the signs above and below
    assert words("한국어는 좋다") == ["한국어는", "좋다"]
    assert unspaced(["我喜欢 tea。"]) and not unspaced(["a dog says 好"]) and not unspaced([])


def test_marks_of_other_scripts_are_words():
    assert words("نعم، لا؟ है। ቃል።") == ["نعم", "،", "لا", "؟", "है", "।", "ቃል", "።"]
    assert separated("نعم؟").split() == ["نعم", "؟"]
    assert separated("it's “so” – a dog's 3.5") == "it's “so” – a dog's 3.5"  # sacrebleu's tokenizer separates these


def test_bleu_by_hand():
    # 3 of 4 words match (the second "the" is clipped), 2 of 3 pairs, 1 of 2 triples; penalty exp(1 - 5/4).
    scores = bleu_scores(split("the the dog runs"), References(split("see the dog runs fast"), max_n=3))
    assert scores == pytest.approx({2: math.exp(-1 / 4) * (3 / 4 * 2 / 3) ** (1 / 2),
                                    3: math.exp(-1 / 4) * (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3)})


def test_bleu_smooths_an_order_without_a_match_but_not_a_sentence_without_one():
    assert bleu_scores(split("b a"), References(split("a b"), max_n=2))[2] == pytest.approx((1 * 0.1) ** 0.5)
    assert bleu_scores(split("x"), References(split("a b"), max_n=2))[2] == 0
    assert bleu_scores([[]], References(split("a b"), max_n=2))[2] == 0


def test_self_bleu_by_hand():
    # Against the others, the first has words 2/2 and pairs 1/1; so has the second; the third has nothing.
    assert self_bleu_scores(split("a b", "a b", "c d"), max_n=2)[2] == pytest.approx(2 / 3)
    # Only "a a" has two a's; the others have one: 1/2 words, 0 -> 0.1 of 1 pairs. Each "a": 1/1, 0.1/1.
    # Lengths: nearest to 2 among (1, 1) is 1, no penalty; nearest to 1 is 1.
    expected = ((1 / 2 * 0.1) ** 0.5 + 2 * 0.1 ** 0.5) / 3
    assert self_bleu_scores(split("a a", "a", "a"), max_n=2)[2] == pytest.approx(expected)


def test_self_bleu_of_one_sentence_repeated_is_one_and_of_unlike_sentences_zero():
    assert self_bleu_scores([["a", "b", "c", "d", "e"]] * 3) == pytest.approx({2: 1, 3: 1, 4: 1, 5: 1})
    assert self_bleu_scores(split("a b", "c d", "e f")) == {2: 0, 3: 0, 4: 0, 5: 0}


@settings(max_examples=60, deadline=None)
@given(hypotheses=SENTENCES, references=SENTENCES)
def test_bleu_and_self_bleu_equal_nltk(hypotheses, references):
    scores, self_scores = bleu_scores(hypotheses, References(references)), self_bleu_scores(hypotheses)
    others = [hypotheses[:i] + hypotheses[i + 1:] for i in range(len(hypotheses))]
    for n in range(2, 6):
        assert scores[n] == pytest.approx(nltk_mean(hypotheses, [references] * len(hypotheses), n), abs=1e-9)
        assert self_scores[n] == pytest.approx(nltk_mean(hypotheses, others, n), abs=1e-9)


def test_bleu_and_self_bleu_equal_nltk_on_a_larger_sample():
    hypotheses, references = random_sentences(0, 60), random_sentences(1, 80)
    others = [hypotheses[:i] + hypotheses[i + 1:] for i in range(len(hypotheses))]
    scores, self_scores = bleu_scores(hypotheses, References(references)), self_bleu_scores(hypotheses)
    assert 0.1 < scores[4] < self_scores[2] < 1
    for n in (2, 5):
        assert scores[n] == pytest.approx(nltk_mean(hypotheses, [references] * 60, n), abs=1e-9)
        assert self_scores[n] == pytest.approx(nltk_mean(hypotheses, others, n), abs=1e-9)


@pytest.mark.parametrize("hypotheses, references", [
    (["A man, aged 3.5, runs - in a $5.50 t-shirt &amp; tie."], ["A MAN of 3.5 runs in $5.5 t-shirt & tie."]),
    (["a dog sits in the sun", "it's 10-12 o'clock"], ["a cat sits by the sea", "its 10-12 o'clock, I say"]),
    (["a b c d e"], ["e d c b a"]),  # two orders and more without a match
    (["a b c"], ["a b c"]),  # no sentence has four words: sacrebleu's effective order
    (["", "a cat sits on the mat"], ["a dog", "a cat sat on the mat"]),
])
def test_reconstruction_bleu_equals_sacrebleu(hypotheses, references):
    theirs = sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True, use_effective_order=True).score
    assert reconstruction_bleu(hypotheses, references) == pytest.approx(theirs, abs=1e-6)


def test_reconstruction_bleu_by_hand():
    # Words 3/4, pairs 1/3, triples 0 -> 1/2 of 2, fours 0 -> 1/4 of 1.
    expected = 100 * (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25
    assert reconstruction_bleu(["a b x d"], ["a b c d"]) == pytest.approx(expected)
    assert reconstruction_bleu(["A dog runs home."], ["a dog runs home."]) == pytest.approx(100)
    with pytest.raises(OutlinesError, match="1 hypotheses, but 2 references"):
        reconstruction_bleu(["a"], ["a", "b"])


@pytest.mark.parametrize("sentence", ["Dogs run", "Hi", "A dog!", "No.", "你好", "是", "¿Qué?", "ครับ"])
def test_the_exact_reconstruction_of_a_short_sentence_has_bleu_100(sentence: str) -> None:
    assert reconstruction_bleu([sentence], [sentence]) == pytest.approx(100)
    assert reconstruction_bleu([""], [sentence]) == 0


def test_reconstruction_bleu_of_chinese_equals_sacrebleus_chinese_tokenizer():
    made, given = ["我在北京学习中文，很好。", "他3岁"], ["我在上海学习英文，不好。", "他3岁了"]
    assert reconstruction_bleu(made, given) == pytest.approx(sacrebleu.corpus_bleu(made, [given], tokenize="zh").score)


def test_distinct_n_and_unique_rate_by_hand():
    samples = split("a b a b", "a b", "a b")
    assert distinct_n(samples, 1) == 2 / 8
    assert distinct_n(samples, 2) == 2 / 5
    assert distinct_n(samples, 5) == 0
    assert unique_rate(samples) == 2 / 3


def test_diversity_and_memorisation_by_hand():
    samples = split("a b c d", "a b c d", "x y")
    # Pairs: ab bc cd twice and xy; triples: abc bcd twice; fours: abcd twice.
    assert diversity(samples) == pytest.approx(4 / 7 * 2 / 4 * 1 / 2)
    assert diversity(split("a b c d e")) == 1
    training = split("z a b c d", "x y")
    assert memorised_ngrams(samples, iter(training)) == 1
    assert memorised_ngrams([*samples, *split("b c d e", "a b c e f")], training) == 2 / 5
    assert memorised_ngrams(samples, training, n=2) == 1 and memorised_ngrams(samples, []) == 0
    assert diversity(split("a")) == memorised_ngrams(split("a"), training) == 0


@settings(max_examples=60, deadline=None)
@given(samples=SENTENCES, training=SENTENCES)
def test_diversity_and_memorisation_equal_counting_with_nltk(samples, training):
    def grams(sentences, n):
        return [gram for sentence in sentences for gram in nltk_ngrams(sentence, n)]

    repeated = [1 - len(set(grams(samples, n))) / (len(grams(samples, n)) or math.inf) for n in (2, 3, 4)]
    assert diversity(samples) == pytest.approx(math.prod(1 - share for share in repeated))
    copied = [gram in grams(training, 3) for gram in grams(samples, 3)]
    assert memorised_ngrams(samples, training, 3) == pytest.approx(sum(copied) / max(1, len(copied)))


def test_copied_rate_counts_every_copy_and_reads_an_iterator_once():
    samples = split("a b", "a b", "b a", "a b c", "c")
    assert copied_rate(samples, iter(split("a b", "a b", "x", "c"))) == 3 / 5
    assert copied_rate(samples, []) == 0


def test_nearest_overlap_by_hand():
    training = split("a b c d e", "b c d x", "c d", "p q")
    # Pairs of the first sample: ab bc cd dx; one training sentence holds three of them. The second is a copy,
    # the third is new, and the fourth, shorter than n, could only be found in its like.
    samples = split("a b c d x", "b c d x", "x y z", "c")
    expected = NearestOverlap(mean=(3 / 4 + 1 + 0 + 0) / 4, near_copies=1 / 4)
    assert nearest_overlap(samples, training, n=2) == expected
    assert nearest_overlap(split("c d"), iter(training), n=4) == NearestOverlap(1.0, 1.0)
    assert nearest_overlap(split("a b"), training, n=4) == NearestOverlap(0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(samples=SENTENCES, training=SENTENCES)
def test_nearest_overlap_equals_comparing_every_pair(samples, training):
    def grams(sentence):
        return {tuple(sentence[i:i + 2]) for i in range(len(sentence) - 1)} or {tuple(sentence)}
    shares = [max(len(grams(s) & grams(t)) / len(grams(s)) for t in training) for s in samples]
    mean, near_copies = nearest_overlap(samples, training, n=2)
    assert mean == pytest.approx(sum(shares) / len(shares))
    assert near_copies == sum(share > 0.9 for share in shares) / len(shares)
    assert copied_rate(samples, training) <= near_copies


def test_length_distance_by_hand_and_against_scipy():
    # Of lengths (1, 3) against (2, 2), half the mass moves by one word up and half by one down.
    assert length_distance(split("a", "a b c"), split("a b", "a b")) == 1
    samples, reference = random_sentences(7, 50), random_sentences(8, 70)
    assert length_distance(samples, samples) == 0
    longer = [[*sentence, "x", "x"] for sentence in samples]
    assert length_distance(samples, longer) == 2
    theirs = wasserstein_distance([len(s) for s in samples], [len(s) for s in reference])
    assert length_distance(samples, reference) == pytest.approx(theirs)


def test_efficient_points_drop_what_another_point_beats():
    curve = [(5, 2), (4, 3), (4.5, 3.5), (4, 3.2), (4, 3), (6, 2), (3.9, 5)]
    assert efficient_points(curve) == [(3.9, 5), (4, 3), (5, 2)]


def test_interpolated_gap_by_hand():
    # a falls from 4 to 2 over [1, 3], b from 5 to 3 over [2, 4]: at 2, 3 against 5; at 3, 2 against 3.5.
    a, b = [(1, 4), (3, 2)], [(2, 5), (3, 3.5), (4, 3)]
    assert interpolated_gap(a, b) == 1.75
    # A knot inside the overlap: 2, then 1 at 2.5 (2.5 against 3.5), then 1.5; the mean is (1.5 + 1.25) / 2.
    b_bent = [(2, 5), (2.5, 3.5), (3, 3.5 - 1e-12), (4, 3)]
    assert interpolated_gap(a, b_bent) == pytest.approx(1.375)


def test_interpolated_gap_is_antisymmetric_and_zero_against_itself():
    a, b = [(1, 4), (2, 2.5), (3, 2)], [(1.5, 3), (2.5, 2.6), (9, 1)]
    assert interpolated_gap(a, b) == pytest.approx(-interpolated_gap(b, a))
    assert interpolated_gap(a, a) == 0
    lower = [(reverse, forward - 0.25) for reverse, forward in a]
    assert interpolated_gap(lower, a) == 0.25


def test_interpolated_gap_of_curves_that_touch_or_do_not_overlap():
    a = [(1, 4), (3, 2)]
    assert interpolated_gap(a, [(3.1, 1), (4, 0.5)]) is None
    assert interpolated_gap(a, [(3, 2.5), (4, 1)]) == 0.5
    assert interpolated_gap([(2, 1)], a) == 2  # one temperature only
    # Points that another one beats do not extend the overlap: (3.5, 2.1) is beaten by (3, 2).
    assert interpolated_gap([*a, (3.5, 2.1)], [(3.2, 1), (4, 0.5)]) is None
