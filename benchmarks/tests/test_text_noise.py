from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import ConfigError, DataError
from expunge.text.scores import TextScores
from expunge.text.sentences import split_sentences
from expunge_bench import text_noise
from expunge_bench.text_noise import measures, methods
from expunge_bench.text_noise.faults import (
    NoisyText,
    code_lines,
    count_tokens,
    emoji,
    inject,
    noise_pieces,
    stray_sentences,
    untokenized,
    urls,
)
from oracles_text import encoder, news, stars

pytestmark = pytest.mark.usefixtures("few_trees")

KINDS = ("code", "url", "emoji", "sentence")


def drawn(kind: str, n: int = 200) -> list[str]:
    return noise_pieces(kind, n, seed=0, stray_lines=stars(20))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("amount", [0.05, 0.10, 0.25, 0.50])
def test_noise_has_the_amount_and_its_places_are_true(kind, amount):
    known = drawn(kind)
    totals = np.zeros(2)
    for number, document in enumerate(news(20, length=20)):
        one = inject(document, known, amount=amount, seed=0, name=number)
        found = [one.text[a:b] for a, b in one.noise.tolist()]
        assert set(found) <= set(known)
        kept, last = "", 0
        for a, b in one.noise.tolist():
            assert one.text[a - 1] == one.text[b] == "\n"
            kept, last = kept + one.text[last : a - 1], b + 1
        assert kept + one.text[last:] == document == one.clean
        totals += [sum(map(count_tokens, found)), count_tokens(document)]
    assert totals[0] / totals.sum() == pytest.approx(amount, abs=0.03)


def test_noise_depends_on_seed_and_name_only():
    known, (first, second) = drawn("code"), news(2)
    once = inject(first, known, amount=0.3, seed=1, name="a")
    inject(second, known, amount=0.5, seed=1, name="b")
    again = inject(first, known, amount=0.3, seed=1, name="a")
    assert once.text == again.text
    assert once.text != inject(first, known, amount=0.3, seed=2, name="a").text
    assert once.text != inject(first, known, amount=0.3, seed=1, name="b").text
    assert all(drawn(kind) == drawn(kind) for kind in KINDS)


def test_places_are_spread_over_the_whole_document():
    document = news(1, length=10)[0]
    where = [
        inject(document, ["1 2 3"], amount=0.02, seed=s, name=0).noise[0, 0] for s in range(200)
    ]
    assert len(set(where)) == 11


def test_amount_zero_adds_no_noise_and_impossible_requests_are_refused():
    document = news(1)[0]
    one = inject(document, ["x y"], amount=0.0, seed=0)
    assert one.text == document
    assert one.noise.shape == (0, 2)
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        inject(document, ["x"], amount=1.0, seed=0)
    with pytest.raises(DataError, match="pieces with tokens"):
        inject(document, [" "], amount=0.5, seed=0)
    with pytest.raises(DataError, match="document with sentences"):
        inject(" ", ["x"], amount=0.5, seed=0)
    with pytest.raises(ConfigError, match="code, url, emoji, sentence"):
        noise_pieces("spam", 3, seed=0)


def test_pieces_are_of_their_kind():
    assert all(a.startswith(("http://", "https://")) and " " not in a for a in urls(50, seed=0))
    assert all(1 <= len(e) <= 6 and not e.isascii() for e in emoji(50, seed=0))
    assert all(count_tokens(line) > 1 and line == line.strip() for line in code_lines(50, seed=0))
    assert all(s.startswith("Each") for s in stray_sentences(stars(5), 20, seed=0))


def test_tokenisation_is_undone():
    line = ' He said , " it is 5 @.@ 2 – 3 @,@ 000 well @-@ made " ( about ) . '
    assert untokenized(line) == 'He said, "it is 5.2 – 3,000 well-made" (about).'
    noise = stray_sentences(["A <unk> word is here . This one is good enough ."], 5, seed=0)
    assert set(noise) == {"This one is good enough."}


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_span_is_noise_if_most_of_it_is(marks):
    text = "x" * 50
    noise = np.array([(a, a + n) for a, n in marks], dtype=np.int64).reshape(-1, 2)
    one = NoisyText(text, noise, text)
    spans = np.array([(0, 10), (10, 25), (25, 50)])
    covered = {i for a, b in noise.tolist() for i in range(a, b)}
    slow = [sum(i in covered for i in range(a, b)) > (b - a) / 2 for a, b in spans.tolist()]
    assert one.noisy(spans).tolist() == slow


def test_the_oracle_restores_the_clean_sentences():
    document = "\n".join(news(4))
    for kind in KINDS:
        one = inject(document, drawn(kind), amount=0.4, seed=0)
        cleaned = methods.remove_true_noise(one)
        assert [cleaned[a:b] for a, b in split_sentences(cleaned).tolist()] == [
            document[a:b] for a, b in split_sentences(document).tolist()
        ]


def test_detection_counts_tokens_and_sentences():
    text = "Aa bb cc dd. Noise. Ee."
    one = NoisyText(text, np.array([[13, 19]]), "")
    nothing = np.zeros(0), np.zeros((0, 2), dtype=np.int64)
    scores = TextScores(
        text, split_sentences(text), np.array([0.0, 1.0, 2.0]), nothing[1], nothing[0], 0.5
    )
    found = measures.measure_detection([scores], [one], by_token=False)
    # 5 tokens of the first sentence stand below the noise, 2 of the last above it
    assert found["auroc"] == found["auroc_document"] == pytest.approx(5 / 7)
    assert found["auroc_sentence"] == pytest.approx(1 / 2)
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["recall"] == 1
    assert found["fpr"] == pytest.approx(1 / 2)


def test_rules_and_perplexity_find_their_kinds_of_noise():
    prose = "The bank rose, e.g. on Monday; it won 3.2% more (or so)."
    found = methods.rules(f"{prose} \nx = f(y)\nhttps://a.b/c\n😀😀\nreturn self.x")
    assert found.is_noise.tolist() == [False, True, True, True, True]
    score = methods.perplexity(news(40), seed=0)
    assert score(f"{news(1, seed=5)[0]}\nx_1 = [k] * 3").is_noise.tolist() == [False] * 6 + [True]
    assert score("").scores.shape == (0,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The layout of the data, with small documents in it."""
    (tmp_path / "bbc_news_summary").mkdir()
    (tmp_path / "wikitext2").mkdir()
    for part, n in {"train": 40, "test": 8}.items():
        documents = news(n, seed=len(part), length=8)
        pq.write_table(
            pa.table(
                {
                    "id": [str(i) for i in range(n)],
                    "document": documents,
                    "summary": [d[: d.index(".") + 1] for d in documents],
                    "category": ["business", "sport"] * (n // 2),
                }
            ),
            tmp_path / "bbc_news_summary" / f"{part}.parquet",
        )
    for part, seed in {"valid": 1, "test": 2}.items():
        lines = ["", " = Stars = ", *stars(30, seed=seed, length=30)]
        (tmp_path / "wikitext2" / f"{part}.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_each_row_is_computed_once_and_tables_are_written(folder):
    calls = 0

    def counting(texts):
        nonlocal calls
        calls += len(texts)
        return encoder(texts)

    def run(**settings):
        return text_noise.bench(
            folder,
            encoder=counting,
            encoder_name="words",
            amounts=[0.5],
            documents=4,
            out=folder / "out",
            **settings,
        )

    rows = run(faults=["sentence"], methods=["combined", "rules"])
    assert [r["method"] for r in rows] == ["combined", "rules"]
    assert rows[0]["auroc"] > 0.95
    assert rows[0]["f1"] > rows[1]["f1"] == 0
    assert rows[0]["centroid_filtered_rouge_1"] > rows[0]["centroid_noisy_rouge_1"]
    calls = 0
    assert run(faults=["sentence"], methods=["combined", "rules"]) == rows
    assert calls == 0
    every = run(faults=["code", "other-category"], methods=text_noise.METHODS)
    assert len(every) == 2 + 2 * len(text_noise.METHODS)
    for row in every:
        json.dumps(row, allow_nan=False)
    table = (folder / "out" / "table.md").read_text()
    assert "leave-one-token-out" in table
    assert "R-1 recovered" in table
    assert len(list((folder / "out" / "filters").iterdir())) == 2


def test_impossible_requests_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'code'"):
        text_noise.bench(
            folder, encoder=encoder, encoder_name="w", faults=["cod"], out=folder / "out"
        )
    with pytest.raises(DataError, match="--data FOLDER"):
        text_noise.bench(tmp_path / "no", encoder=encoder, encoder_name="w", out=folder / "out")
