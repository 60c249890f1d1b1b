from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.covariance import ledoit_wolf

from expunge._core.rng import generator
from expunge.errors import ConfigError, DataError, ModelError
from expunge.storage.array_files import read_tensors, save_tensors
from expunge.text.characters import CharacterModel
from expunge.text.combined import _contrast as contrast
from expunge.text.encoders import TokenStates
from expunge.text.evidence import incoherence
from expunge.text.filters import TextNoiseFilter
from expunge.text.gaussians import Gaussian
from expunge.text.length_normaliser import LengthNormaliser
from expunge.text.published import MahalanobisScorer
from expunge.text.scores import TextScores
from expunge.text.states import group_by_sentence
from oracles_text import covariance_of, encoder, news, slow_mahalanobis, stars

CODE = "x_1 = {k: v[0] for k in f(y)}"


def fitted(kind: str = "combined", **settings: object) -> TextNoiseFilter:
    return TextNoiseFilter.fit(news(60), stars(30), encoder=encoder, kind=kind, **settings)


@pytest.fixture(scope="module")
def combined() -> TextNoiseFilter:
    return fitted()


@pytest.fixture(scope="module")
def published() -> TextNoiseFilter:
    return fitted("relative")


def test_distances_are_those_of_a_slow_loop_with_the_same_covariance():
    x = generator(0, "x").standard_normal((40, 5)) @ np.diag([1, 2, 3, 0.1, 1.0]) + 2
    gaussian = Gaussian.fit(x)
    covariance = ledoit_wolf(x)[0]
    assert_allclose(covariance_of(gaussian.basis), covariance, rtol=1e-8)
    assert_allclose(gaussian.distance(x), slow_mahalanobis(x, x.mean(axis=0), covariance))


def test_a_constant_column_and_few_rows_give_finite_distances():
    x = np.ones((3, 8))
    x[:, 0] = [0, 1, 2]
    assert np.isfinite(Gaussian.fit(x).distance(x)).all()
    with pytest.raises(DataError, match=r"expected two states or more .*, got 1"):
        Gaussian.fit(x[:1])


@pytest.mark.parametrize("distance", ["relative", "plain"])
@pytest.mark.parametrize("unit", ["sentence", "token"])
def test_leaving_out_equals_a_slow_loop_over_what_is_left(published, distance, unit):
    document = f"{news(1, seed=5)[0]} {CODE}"
    states = encoder([document])[0]
    parts = group_by_sentence(document, states)
    scorer = published.scorer
    assert isinstance(scorer, MahalanobisScorer)

    def far(z: np.ndarray) -> float:
        value = 0.0
        for gaussian, sign in ((scorer.document, 1), (scorer.document_background, -1)):
            if sign > 0 or distance == "relative":
                covariance = covariance_of(gaussian.basis)
                value += sign * slow_mahalanobis(z[None], gaussian.mean, covariance)[0]
        return value

    groups = parts.sentence_of if unit == "sentence" else np.arange(len(parts.sentence_of))
    x = states.states.astype(np.float64)
    slow = [far(x.mean(axis=0)) - far(x[groups != g].mean(axis=0)) for g in np.unique(groups)]
    name = f"leave-one-{unit}-out"
    found = published.with_settings(kind=distance, granularity=name).score(document)
    if unit == "sentence":
        assert_allclose(found.scores, slow, rtol=1e-6, atol=1e-6)
        assert_allclose(found.token_scores, np.array(slow)[parts.sentence_of], rtol=1e-6, atol=1e-6)
    else:
        assert_allclose(found.token_scores, slow, rtol=1e-6, atol=1e-6)
        means = [np.mean(np.array(slow)[parts.sentence_of == s]) for s in range(len(parts.spans))]
        assert_allclose(found.scores, means, rtol=1e-6, atol=1e-6)


def test_sentence_scores_are_the_published_formula(published):
    document = f"{news(1, seed=6)[0]} {stars(1, seed=6)[0]}"
    states = encoder([document])[0]
    parts = group_by_sentence(document, states)
    means = [states.states[parts.sentence_of == s].mean(axis=0) for s in range(len(parts.spans))]
    scorer = published.scorer
    slow = [
        slow_mahalanobis(np.array(means), g.mean, covariance_of(g.basis))
        for g in (scorer.sentence, scorer.sentence_background)
    ]
    assert_allclose(published.score(document).scores, slow[0] - slow[1], rtol=1e-4)
    plain = published.with_settings(kind="plain").score(document)
    assert_allclose(plain.scores, slow[0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["combined", "relative"])
def test_stray_sentences_are_found(kind, combined, published):
    filter = {"combined": combined, "relative": published}[kind]
    clean, stray = news(1, seed=7)[0], stars(1, seed=7, length=2)[0]
    found = filter.score(f"{clean} {stray}")
    assert_array_equal(found.is_noise, [False] * 6 + [True] * 2)
    assert found.cleaned == clean
    assert filter.clean(f"{clean} {stray}") == clean


def test_code_is_strange_to_the_combined_score(combined):
    clean = news(1, seed=8)[0]
    assert combined.clean(f"{clean}\n{CODE}\n{clean}") == f"{clean}\n{clean}"


@pytest.mark.parametrize("kind", ["combined", "relative"])
def test_few_clean_sentences_are_removed(kind, combined, published):
    filter = {"combined": combined, "relative": published}[kind]
    gone = np.concatenate([s.is_noise for s in filter.score_all(news(60, seed=9))])
    assert gone.mean() < 0.05
    strict = filter.with_settings(quantile=0.5)
    assert strict.threshold < filter.threshold
    assert (
        0.3 < np.concatenate([s.is_noise for s in strict.score_all(news(60, seed=9))]).mean() < 0.7
    )


@pytest.mark.parametrize("kind", ["combined", "relative"])
def test_scores_are_deterministic_and_do_not_depend_on_other_documents(kind, combined, published):
    filter = {"combined": combined, "relative": published}[kind]
    documents = [*news(2, seed=3), CODE, *stars(1), ""]
    together = filter.score_all(documents)
    for document, one in zip(documents, together, strict=True):
        alone = filter.score(document)
        assert_array_equal(alone.scores, one.scores)
        assert_array_equal(alone.sentences, one.sentences)
    again = fitted(kind).score_all(documents)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(together, again, strict=True))


def test_tokens_have_offsets_into_the_text_and_a_score_each(combined, published):
    document = f"{news(1)[0]} {CODE}"
    for filter in (combined, published):
        found = filter.score(document)
        assert len(found.tokens) == len(found.token_scores)
        words = [document[a:b] for a, b in found.tokens.tolist()]
        assert words[:3] == document.split()[:3]
        assert np.isfinite(found.token_scores).all()


@pytest.mark.parametrize("kind", ["combined", "relative"])
@pytest.mark.parametrize(
    "document",
    [
        "",
        " \n ",
        "One sentence only.",
        "😀",
        "\0\x01\x02",
        "Это другой язык. 你好。",
        CODE,
        "x" * 5000,
    ],
)
def test_odd_documents_have_a_defined_result(kind, document, combined, published):
    filter = {"combined": combined, "relative": published}[kind]
    for granularity in ("sentence", "leave-one-sentence-out", "leave-one-token-out"):
        if kind == "relative" or granularity == "sentence":
            found = filter.with_settings(granularity=granularity).score(document)
            assert np.isfinite(found.scores).all()
            assert len(found.scores) == len(found.sentences)
            assert found.cleaned == (document if not found.is_noise.any() else found.cleaned)


def test_all_noise_leaves_an_empty_text(combined):
    found = combined.score(f"{CODE}\n{CODE}\n😀😀")
    assert found.is_noise.all()
    assert found.cleaned == ""


def test_one_usual_sentence_is_not_foreign_for_want_of_others(combined):
    clean = [d.split(". ")[0] + "." for d in news(40, seed=11)]
    assert np.mean([combined.score(d).is_noise[0] for d in clean]) < 0.1


def test_a_sentence_without_tokens_is_judged_by_its_characters():
    def deaf(texts: Sequence[str]) -> list[TokenStates]:
        found = encoder(texts)
        heard = []
        for text, one in zip(texts, found, strict=True):
            kept = np.array([text[a] != "☃" for a in one.offsets[:, 0].tolist()], dtype=bool)
            heard.append(TokenStates(one.states[kept], one.offsets[kept]))
        return heard

    filter = TextNoiseFilter.fit(news(60), stars(30), encoder=deaf)
    found = filter.score(f"{news(1)[0]}\n☃☃☃")
    assert np.isfinite(found.scores).all()
    assert found.is_noise[-1]
    assert np.isnan(found.evidence["relative"]).tolist() == [False] * 6 + [True]
    for document in ("☃☃", "☃☃. ☃"):
        assert np.isfinite(filter.score(document).scores).all()
    published = TextNoiseFilter.fit(news(60), stars(30), encoder=deaf, kind="relative")
    for name in ("leave-one-sentence-out", "leave-one-token-out"):
        silent = published.with_settings(granularity=name).score("☃☃")
        assert_array_equal(silent.scores, [0])


def test_a_blank_before_a_word_does_not_move_it_to_the_sentence_before():
    def blanks(texts: Sequence[str]) -> list[TokenStates]:
        found = encoder(texts)
        for text, one in zip(texts, found, strict=True):
            for row in one.offsets:
                row[0] -= row[0] > 0 and text[row[0] - 1] == " "
        return found

    document = f"{news(1)[0]} {stars(1)[0]}"
    for kind in ("combined", "relative"):
        ours, theirs = (
            TextNoiseFilter.fit(news(40), stars(20), encoder=e, kind=kind).score(document)
            for e in (encoder, blanks)
        )
        assert_allclose(ours.scores, theirs.scores)


def test_a_filter_is_saved_without_pickle_and_loaded_the_same(tmp_path, combined, published):
    document = f"{news(1, seed=4)[0]} {stars(1)[0]} {CODE}"
    for name, filter in {"a": combined.with_settings(quantile=0.9), "b": published}.items():
        filter.save(tmp_path / name)
        assert [p.name for p in (tmp_path / name).iterdir()] == ["filter.safetensors"]
        loaded = TextNoiseFilter.load(tmp_path / name, encoder=encoder)
        assert_array_equal(loaded.score(document).scores, filter.score(document).scores)
        assert loaded.threshold == filter.threshold
        assert loaded.config == filter.config
    plain = TextNoiseFilter.load(tmp_path / "b", encoder=encoder).with_settings(kind="plain")
    assert_array_equal(
        plain.score(document).scores, published.with_settings(kind="plain").score(document).scores
    )


def test_another_encoder_is_refused(tmp_path, combined):
    combined.save(tmp_path)

    def other(texts: Sequence[str]) -> list[TokenStates]:
        return [TokenStates(f.states + 1, f.offsets) for f in encoder(texts)]

    with pytest.raises(ModelError, match="not the encoder that the filter was fitted with"):
        TextNoiseFilter.load(tmp_path, encoder=other)
    with pytest.raises(ModelError, match="encoder of your own"):
        TextNoiseFilter.load(tmp_path)


def test_a_damaged_filter_is_an_error(tmp_path, combined):
    with pytest.raises(ModelError, match=r"cannot be read[^§]*fix: run `expunge text fit` again"):
        TextNoiseFilter.load(tmp_path, encoder=encoder)
    combined.save(tmp_path)
    file = tmp_path / "filter.safetensors"
    tensors, facts = read_tensors(file)
    facts["config"]["kind"] = "combind"
    save_tensors(file, tensors, facts)
    with pytest.raises(ConfigError, match="did you mean 'combined'"):
        TextNoiseFilter.load(tmp_path, encoder=encoder)
    del tensors["probe"], facts["config"]
    save_tensors(file, tensors, facts)
    with pytest.raises(ModelError, match="the filter is damaged"):
        TextNoiseFilter.load(tmp_path, encoder=encoder)
    file.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        TextNoiseFilter.load(tmp_path, encoder=encoder)


def test_a_filter_of_another_format_is_refused(tmp_path, combined):
    combined.save(tmp_path)
    tensors, settings = read_tensors(tmp_path / "filter.safetensors")
    save_tensors(tmp_path / "filter.safetensors", tensors, {**settings, "version": 1})
    with pytest.raises(ModelError, match="filter format 1, this version reads 3"):
        TextNoiseFilter.load(tmp_path, encoder=encoder)


def test_what_cannot_be_fitted_or_scored_says_why(combined, published):
    with pytest.raises(DataError, match="expected 10 in-domain documents or more, got 3"):
        TextNoiseFilter.fit(news(3), stars(9), encoder=encoder)
    with pytest.raises(DataError, match="expected 2 background documents or more, got 0"):
        TextNoiseFilter.fit(news(30), ["", " "], encoder=encoder)
    with pytest.raises(DataError, match=r"expected a sequence of .*, got one text"):
        TextNoiseFilter.fit("a text", stars(9), encoder=encoder)
    with pytest.raises(DataError, match="in-domain documents 1 are not text"):
        TextNoiseFilter.fit(["a", b"b"], stars(9), encoder=encoder)
    with pytest.raises(DataError, match="documents 0 are not text"):
        combined.score("half \ud800 a character")
    with pytest.raises(ConfigError, match="not fitted for 'relative' but for combined/sentence"):
        combined.with_settings(kind="relative")
    with pytest.raises(ConfigError, match=r"quantile must lie in \(0, 1\)"):
        published.with_settings(quantile=1.0)
    with pytest.raises(ConfigError, match="is computed by sentence"):
        fitted("combined", granularity="leave-one-token-out")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: TokenStates(f.states * np.nan, f.offsets), "NaN or infinite"),
        (lambda f: TokenStates(f.states[:, 0], f.offsets), r"expected states \[t, d\]"),
        (lambda f: TokenStates(f.states, f.offsets[:-1]), r"expected states \[t, d\]"),
        (lambda f: TokenStates(f.states, f.offsets + 10**6), "outside the text"),
        (lambda f: TokenStates(f.states, f.offsets[::-1]), "offsets decrease"),
    ],
)
def test_what_an_encoder_must_not_give_is_named(spoil, message, combined, published):
    for filter in (combined, published):
        broken = TextNoiseFilter(
            lambda texts: [spoil(f) for f in encoder(texts)],
            filter.config,
            filter.scorer,
            filter.reference_scores,
            filter.probe,
        )
        with pytest.raises(ModelError, match=message):
            broken.score(news(1)[0])


def test_surprisal_is_that_of_smoothed_counts():
    documents = ["abcab 12", "abd"]
    model = CharacterModel.fit(documents)
    text = "ab 3c"

    def slow(i: int) -> float:
        fold = [d.replace("1", "0").replace("2", "0") for d in documents]
        t = " " * 9 + text.replace("3", "0")
        at, p = 9 + i, 1 / 0x110000
        padded = [" " * 9 + d for d in fold]
        for k in range(1, 6):
            gram, context = t[at - k + 1 : at + 1], t[at - k + 1 : at]

            def count(g: str) -> int:
                return sum(p[: e + 1].endswith(g) for p in padded for e in range(9, len(p)))

            p = (min(count(gram), count(context)) + 4 * p) / (count(context) + 4)
        return -np.log(p)

    assert_allclose(model.surprisal(text), [slow(i) for i in range(len(text))], rtol=1e-9)
    assert model.surprisal("").shape == (0,)
    with pytest.raises(DataError, match="no characters"):
        CharacterModel.fit([""])


def test_incoherence_equals_a_slow_loop():
    x = generator(0, "x").standard_normal((600, 4))
    doubtful = generator(0, "doubtful").random(600) < 0.3
    found = incoherence(x, doubtful)
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in (0, 255, 256, 400, 599):
        block = 256 * (i // 256)
        near = [
            j
            for j in range(max(0, block - 256), min(600, block + 512))
            if j != i and not doubtful[j]
        ]
        assert found[i] == pytest.approx(-np.mean(sorted(z[near] @ z[i])[-3:]), abs=1e-6)
    assert np.isnan(incoherence(x[:1], doubtful[:1])).all()


def test_z_scores_take_the_length_into_account():
    rng = generator(0, "standard")
    lengths = rng.integers(1, 100, 4000)
    values = np.log(lengths) + rng.standard_normal(4000) / np.sqrt(lengths)
    z = LengthNormaliser.fit(values, lengths).z_scores(values, lengths)
    short = lengths < 20
    assert abs(np.median(z[short])) < 0.2
    assert abs(np.median(z[~short])) < 0.2
    assert np.quantile(z[~short], 0.84) == pytest.approx(1, abs=0.2)
    flat = LengthNormaliser.fit(np.ones(50), np.ones(50))
    assert_allclose(flat.z_scores(np.ones(3), np.array([1, 5, 9])), 0, atol=1e-6)
    with pytest.raises(DataError, match="expected two clean sentences or more, got 1"):
        LengthNormaliser.fit(np.ones(1), np.ones(1))


def test_a_huge_document_is_scored_in_blocks(combined):
    documents = news(200, seed=12)
    stray = stars(1, seed=13, length=1)[0]
    found = combined.score(" ".join([*documents[:100], stray, *documents[100:]]))
    assert len(found.sentences) == 1201
    assert found.is_noise[600]
    assert found.is_noise.mean() < 0.05


def test_a_score_at_the_threshold_is_not_noise():
    spans, none = np.array([[0, 4]]), (np.zeros((0, 2), dtype=np.int64), np.zeros(0))
    at, above = (TextScores("One.", spans, np.array([s]), *none, 1.0) for s in (1.0, 1.1))
    assert not at.is_noise.any()
    assert above.is_noise.all()


def test_evidence_for_the_background_raises_the_domain_contrast():
    names = ("relative", "token_relative", "relative_surprisal")
    assert contrast({name: np.array([1.0]) for name in names}).tolist() == [1.5]
