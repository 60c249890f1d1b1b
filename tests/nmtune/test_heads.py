from __future__ import annotations

import errno
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge import stages
from expunge._core.rng import temp_seed
from expunge.errors import ConfigError, DataError, ModelError, RunError
from expunge.models.zoo import convnet
from expunge.nmtune import (
    PRESETS,
    NMTune,
    NMTuneConfig,
    adapt,
    attach,
    embed,
    encoders,
    heads,
    lsvr,
    objectives,
    pages,
    singular_values,
    spectra,
    sve,
    training,
    without_head,
)
from expunge.storage.array_files import read_tensors, save_tensors
from oracles_digits import clean, network
from oracles_training import assert_resumes

QUICK = replace(PRESETS["paper"], epochs=4, learning_rates=(0.01, 0.001))


def planted(
    n: int = 120, d: int = 12, classes: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre for each class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(9).normal(size=(classes, d))
    return (centres[y] + 0.4 * rng.normal(size=(n, d))).astype(np.float32), y


# Spectra


def test_singular_values_are_those_of_numpy():
    x = np.random.default_rng(0).normal(size=(9, 5)) + 1
    s = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(singular_values(x), s)
    by_column = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(singular_values(x, centre="columns"), by_column)
    rows = x / np.linalg.norm(x, axis=1)[:, None]
    rows = np.linalg.svd(rows - rows.mean(1)[:, None], compute_uv=False)
    np.testing.assert_allclose(singular_values(x, centre="rows", normalise=True), rows, atol=1e-12)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_sve_and_lsvr_are_their_sums_and_within_bounds(values):
    p = [v / sum(values) for v in values]
    s = np.array(values)
    assert sve(s) == pytest.approx(-sum(q * math.log(q) for q in p if q), abs=1e-9)
    assert lsvr(s) == pytest.approx(-math.log(max(p)), abs=1e-9)
    assert -1e-9 <= lsvr(s) <= sve(s) + 1e-9 <= math.log(len(values)) + 2e-9
    assert sve(7 * s) == pytest.approx(sve(s), abs=1e-9)


def test_closed_forms_of_spectra():
    assert sve(np.ones(16)) == pytest.approx(math.log(16))
    assert lsvr(np.ones(16)) == pytest.approx(math.log(16))
    one = singular_values(np.outer(np.arange(1, 5), np.ones(3)))
    assert sve(one) == pytest.approx(0, abs=1e-9)
    assert lsvr(one) == pytest.approx(0, abs=1e-9)


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(DataError, match="rows 1"):
        singular_values(np.array([[1.0], [np.nan]]))
    for x in (np.zeros(3), np.zeros((0, 3)), np.array([["a"]])):
        with pytest.raises(DataError, match="expected features"):
            singular_values(x)
    for values in (np.zeros(3), -np.ones(2), np.zeros(0), np.array([np.inf])):
        with pytest.raises(DataError, match="not all zero"):
            sve(values)
    with pytest.raises(ConfigError, match="none, columns or rows"):
        singular_values(np.ones((2, 2)), centre="all")  # type: ignore[arg-type]


# Terms of the objective


def slow_terms(z: np.ndarray, f: np.ndarray, top: int) -> tuple[float, float, float, float]:
    """Consistency summed and averaged, covariance, dominance, all in plain loops."""
    b, d = z.shape
    summed = 0.0
    for u, v in zip(z, f, strict=True):
        a, c = u / math.sqrt(sum(u * u)), v / math.sqrt(sum(v * v))
        summed += sum((a[k] - c[k]) ** 2 for k in range(d)) / b
    mean = z.mean(axis=0)
    cov = 0.0
    for i in range(d):
        for j in range(d):
            if i != j:
                c = sum((z[k, i] - mean[i]) * (z[k, j] - mean[j]) for k in range(b)) / (b - 1)
                cov += c * c / d
    s = np.sqrt(np.linalg.eigvalsh(z.T @ z).clip(0))[::-1]
    return summed, summed / d, cov, -sum(s[:top]) / top / sum(s)


@pytest.mark.parametrize("top", [1, 5])
def test_terms_are_those_of_slow_loops(top):
    rng = np.random.default_rng(1)
    z, f = rng.normal(size=(10, 7)), rng.normal(size=(10, 7))
    found = slow_terms(z, f, top)
    t, u = torch.from_numpy(z), torch.from_numpy(f)
    assert float(objectives.consistency(t, u)) == pytest.approx(found[0])
    assert float(objectives.consistency(t, u, reduction="mean")) == pytest.approx(found[1])
    assert float(objectives.covariance(t)) == pytest.approx(found[2])
    assert float(objectives.dominance(t, top=top)) == pytest.approx(found[3])


def test_gradients_are_right_also_with_fewer_rows_than_columns():
    z = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z.requires_grad_()
    f = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    terms = (objectives.covariance, objectives.dominance, lambda z: objectives.consistency(z, f))
    for term in terms:
        assert torch.autograd.gradcheck(term, z)
    objectives.consistency(z, f).backward()
    assert f.grad is None


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_presets_weigh_the_terms_as_published(preset):
    rng = np.random.default_rng(2)
    z, f = rng.normal(size=(2, 8, 5)), rng.normal(size=(2, 8, 5))
    config = PRESETS[preset]
    both = z.reshape(16, 5)
    if preset == "paper":
        summed, _, cov, first = slow_terms(both, f.reshape(16, 5), 1)
        expected = 0.01 * (summed + cov + first)
    else:
        _, mean, _, _ = slow_terms(z[1], f[0], 5)
        _, _, cov, top = slow_terms(both, both, 5)
        expected = 1.0 * mean + 0.04 * cov + 0.001 * top
    found = objectives.regularisation(torch.from_numpy(z), torch.from_numpy(f), config)
    assert float(found) == pytest.approx(expected)


def test_baselines_have_no_terms():
    z = torch.ones(2, 4, 3)
    assert float(objectives.regularisation(z, z, PRESETS["mlp"])) == 0
    assert not PRESETS["linear"].hidden


def test_settings_that_make_no_sense_are_named_all_at_once():
    with pytest.raises(ConfigError, match=r"(?s)ratio.*consistency.*batch_size.*rates"):
        NMTuneConfig(ratio=0, batch_size=1, consistency=-1.0, learning_rates=())


# Heads


def test_the_head_is_its_formula():
    config = NMTuneConfig(ratio=2)
    head = heads.Head(4, 3, config, scale=0.5).eval()
    with torch.no_grad():
        head.gate.copy_(torch.tensor([1.0, 0.0, 2.0, -1.0]))
    f = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    first, norm, _, second = head.mlp
    hidden = (0.5 * f @ first.weight.T + first.bias) / math.sqrt(1 + norm.eps)
    z = 0.5 * f + head.gate * (hidden.clamp_min(0) @ second.weight.T + second.bias)
    torch.testing.assert_close(head.transform(f), z)
    torch.testing.assert_close(head(f), z @ head.linear.weight.T)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_planted_classes_are_found(preset):
    config = replace(PRESETS[preset], epochs=8, learning_rates=(0.01, 0.003))
    fitted = NMTune.fit(*planted(), config=config)
    x, y = planted(seed=1)
    assert (fitted.predict(x) == y).mean() > 0.9
    p = fitted.probabilities(x)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert p.shape == (120, 3)
    assert fitted.transform(x).shape == x.shape


def test_the_probe_does_what_a_logistic_regression_does():
    from sklearn.linear_model import LogisticRegression

    x, y = planted(classes=4)
    config = replace(
        PRESETS["linear"], epochs=400, weight_decay=0.0, learning_rates=(0.03,), batch_size=120
    )
    head = NMTune.fit(x, y, config=config).probabilities(x)
    other = LogisticRegression(C=np.inf, max_iter=400).fit(x, y).predict_proba(x)
    assert np.abs(head - other).max() < 0.05


def test_a_stronger_term_moves_what_it_is_about():
    x, y = planted(n=200)
    plain = replace(PRESETS["mlp"], learning_rates=(0.003,), epochs=10)

    def fitted(**weights: float) -> NMTune:
        return NMTune.fit(x, y, config=replace(plain, **weights))

    def told(head: NMTune) -> tuple[float, float, float]:
        z = torch.from_numpy(head.transform(x))
        moved = float(objectives.consistency(z, torch.from_numpy(x)))
        return moved, float(objectives.covariance(z)), lsvr(singular_values(z.numpy()))

    moved, cov, ratio = told(fitted())
    assert told(fitted(consistency=10.0))[0] < 0.5 * moved
    assert told(fitted(covariance=1.0))[1] < 0.5 * cov
    assert told(fitted(dominance=10.0))[2] < ratio


def test_a_fit_depends_on_seed_and_data_alone_and_changes_nothing():
    x, y = planted()
    before = x.copy(), torch.get_rng_state()
    first, again = (NMTune.fit(x, y, config=QUICK, seed=3) for _ in range(2))
    assert np.array_equal(first.probabilities(x), again.probabilities(x))
    assert not np.array_equal(
        first.probabilities(x), NMTune.fit(x, y, config=QUICK, seed=4).probabilities(x)
    )
    assert np.array_equal(x, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_length_of_embeddings_does_not_matter():
    x, y = planted()
    small, large = (
        NMTune.fit(c * x, y, config=QUICK).probabilities(c * x) for c in (2**-10, 2**10)
    )
    np.testing.assert_allclose(small, large, atol=1e-3)


def test_predictions_do_not_depend_on_the_batch(monkeypatch):
    x, y = planted()
    fitted = NMTune.fit(x, y, config=QUICK)
    whole = fitted.probabilities(x)
    monkeypatch.setattr(heads, "BATCH_SIZE", 7)
    np.testing.assert_allclose(fitted.probabilities(x), whole, atol=1e-6)


def test_the_rate_is_chosen_on_what_is_held_out():
    x, y = planted()
    fitted = NMTune.fit(x, y, config=replace(QUICK, learning_rates=(1e-9, 0.01)))
    assert [t.learning_rate for t in fitted.trials] == [1e-9, 0.01]
    assert fitted.learning_rate == 0.01
    assert fitted.trials[1].rank > fitted.trials[0].rank
    # spectra are those of the 24 held out
    assert fitted.spectra["features"].shape == (12,)
    own, others = heads._split(y, 0.2, ("a", "b", "c"), seed=0)
    assert sorted([*own, *others]) == list(range(120))
    assert np.bincount(y[others]).tolist() == [8, 8, 8]
    one = NMTune.fit(x, y, config=replace(QUICK, learning_rates=(0.01,)))
    assert one.trials == ()
    np.testing.assert_allclose(one.spectra["features"], singular_values(x), rtol=1e-5)


def test_of_equal_rates_the_smaller_one_is_taken():
    trials = [heads.Trial(r, 0.9, 0.1) for r in (0.1, 0.01, 0.03)]
    assert max(trials, key=lambda t: t.rank).learning_rate == 0.01
    assert heads.Trial(1.0, 0.8, 0.1).rank > heads.Trial(0.1, 0.9, 0.2).rank
    assert heads.Trial(1.0, 0.91, 0.2).rank > heads.Trial(0.1, 0.9, 0.2).rank


def test_a_trial_is_the_mean_over_views():
    head = heads.Head(4, 3, PRESETS["linear"]).eval()
    views, y = torch.randn(3, 10, 4), np.arange(10) % 3
    found = heads._evaluate(head, views, y, 0.1)
    single = [heads._evaluate(head, view[None], y, 0.1) for view in views]
    assert found.loss == pytest.approx(np.mean([t.loss for t in single]))
    assert found.accuracy == pytest.approx(np.mean([t.accuracy for t in single]))


def test_two_views_of_a_sample_differ():
    picked = training.choose_two_views(4, 500, np.random.default_rng(0))
    assert picked.shape == (2, 500)
    assert (picked[0] != picked[1]).all()
    assert np.bincount(picked.ravel(), minlength=4).min() > 200
    assert training.choose_two_views(1, 5, np.random.default_rng(0)).tolist() == [[0] * 5]


def test_views_are_used():
    x, y = planted()
    noisy = np.stack([x, *(planted(seed=s)[0] for s in (5, 6))])
    fitted = NMTune.fit(noisy, y, config=QUICK)
    assert (fitted.predict(planted(seed=8)[0]) == y).mean() > 0.9


def test_labels_may_be_names():
    x, y = planted()
    names = np.array(["fig", "apple", "pear"])
    fitted = NMTune.fit(x, names[y], config=QUICK)
    assert fitted.classes == ("apple", "fig", "pear")
    found = np.array(fitted.classes)[fitted.predict(x)]
    assert (found == names[y]).mean() > 0.9


def test_a_saved_head_is_the_same(tmp_path):
    x, y = planted()
    fitted = NMTune.fit(x, y, config=QUICK, classes=("a", "b", "c"))
    fitted.save(tmp_path / "head")
    again = NMTune.load(tmp_path / "head")
    assert np.array_equal(fitted.probabilities(x), again.probabilities(x))
    assert (again.classes, again.learning_rate, again.trials, again.config) == (
        ("a", "b", "c"),
        *(fitted.learning_rate, fitted.trials, fitted.config),
    )
    np.testing.assert_array_equal(again.spectra["features"], fitted.spectra["features"])
    with pytest.raises(ConfigError, match="no device 'nowhere'"):
        NMTune.load(tmp_path / "head", device="nowhere")
    assert pages.report(again) == pages.report(fitted)


def test_a_folder_without_a_valid_head_is_refused(tmp_path):
    with pytest.raises(ModelError, match="expunge nmtune fit"):
        NMTune.load(tmp_path)
    x, y = planted()
    NMTune.fit(x, y, config=QUICK).save(tmp_path)
    file = tmp_path / heads.HEAD_FILE
    tensors, facts = read_tensors(file)
    save_tensors(file, tensors, {**facts, "version": 9})
    with pytest.raises(ModelError, match="head format 9, this version reads 3"):
        NMTune.load(tmp_path)
    for width in (5, 10**9, -1, "x", None):  # a billion features would take exabytes
        save_tensors(file, tensors, {**facts, "width": width})
        with pytest.raises(ModelError, match="the head is damaged"):
            NMTune.load(tmp_path)
    file.write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be read"):
        NMTune.load(tmp_path)


def test_a_flipped_bit_in_a_head_is_noticed(tmp_path):
    x, y = planted()
    NMTune.fit(x, y, config=QUICK).save(tmp_path)
    file = tmp_path / heads.HEAD_FILE
    whole = file.read_bytes()
    for position in range(0, len(whole), len(whole) // 50):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        with pytest.raises(ModelError):
            NMTune.load(tmp_path)


def test_a_head_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    x, y = planted()
    old = NMTune.fit(x, y, config=QUICK)
    old.save(tmp_path)

    def full(*args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("expunge.storage.array_files.save_file", full)
        with pytest.raises(RunError, match="cannot be written: No space left"):
            NMTune.fit(x, y[::-1].copy(), config=QUICK).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [heads.HEAD_FILE]
    assert np.array_equal(NMTune.load(tmp_path).predict(x), old.predict(x))


def test_what_cannot_be_fitted_is_said():
    x, y = planted()
    for features, labels, said in (
        (x, y[:-1], "do not match"),
        (x[0], y, r"\[n, d\]"),
        (x, np.zeros(120, dtype=int), "a classifier needs two or more"),
        (np.where(np.arange(120)[:, None] == 3, np.nan, x), y, "rows 3"),
        (x, np.where(np.arange(120) == 0, 3, y), "hold some out"),
        (x[:3], y[:3], "hold some out"),
    ):
        with pytest.raises(DataError, match=said):
            NMTune.fit(features, labels, config=QUICK)
    with pytest.raises(DataError, match="same label"):
        NMTune.fit(x, np.zeros(120, dtype=int), config=QUICK, classes=("a", "b"))
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        NMTune.fit(x, y, preset="papr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="held_out"):
        NMTune.fit(x, y, config=QUICK, held_out=1.0)
    with pytest.raises(DataError, match="fitted with 12"):
        NMTune.fit(x, y, config=QUICK).predict(x[:, :5])
    for device in ("cuda:99", "nowhere"):
        with pytest.raises(ConfigError, match=f"no device '{device}'"):
            NMTune.fit(x, y, config=QUICK, device=device)
    with pytest.raises(ModelError, match=r"nmtune 1e\+30: (the loss|features) became"):
        NMTune.fit(x, y, config=replace(QUICK, learning_rates=(1e30,)))


def test_features_that_are_all_zero_are_no_error():
    _, y = planted()
    fitted = NMTune.fit(np.ones((120, 2), dtype=np.float32) * [0, 1], y, config=QUICK)
    assert np.isfinite(fitted.probabilities(np.zeros((2, 2)))).all()


# Encoders


def test_an_encoder_gives_what_the_head_of_its_model_reads():
    model, samples = network().eval(), clean(70)
    encoder = without_head(model, samples)
    f = embed(encoder, samples)
    assert f.shape == (1, 70, 48)
    x = samples.batch(np.arange(70))
    with torch.no_grad():
        torch.testing.assert_close(model[-1](torch.from_numpy(f[0])), model(x))
    pair = (x.numpy(), samples.labels)  # arrays are data, too
    assert np.array_equal(embed(without_head(model, pair), pair), f)
    with pytest.raises(ConfigError, match="no views"):
        embed(encoder, samples, views=2)
    with pytest.raises(ConfigError, match="views must be 0 or more"):
        embed(encoder, samples, views=-1)
    with pytest.raises(ModelError, match=r"expected features \[batch, d\], got \[70, 1, 8, 8\]"):
        embed(nn.Identity(), samples)


def test_views_are_random_and_depend_on_the_seed_alone():
    samples = clean(70, view="crop-flip")
    encoder = without_head(network(), samples)
    views = embed(encoder, samples, views=2, seed=1)
    assert views.shape == (2, 70, 48)
    assert not np.allclose(views[0], views[1])
    assert np.array_equal(views, embed(encoder, samples, views=2, seed=1))
    assert not np.array_equal(views, embed(encoder, samples, views=2, seed=2))


def test_a_head_on_its_encoder_is_a_model_like_any_other():
    model, samples = network(), clean(120)
    encoder = without_head(model, samples)
    features = embed(encoder, samples)
    fitted = NMTune.fit(features, samples.labels, config=QUICK, classes=samples.classes)
    whole = attach(model, fitted, samples)
    assert np.array_equal(stages.predict(whole, samples), fitted.predict(features[0]))
    assert model[-1].in_features == 48  # the model is left as it was
    x, y = planted()
    with pytest.raises(ModelError, match="reads 48 features"):
        attach(model, NMTune.fit(x, y, config=QUICK), samples)


def small() -> nn.Module:
    with temp_seed(0, "network"):
        return convnet(classes=10, channels=1, widths=(8, 16), hidden=32)


def test_low_ranks_start_as_nothing_and_can_be_added_for_good():
    model = small().eval()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model(x)
    changed = small().eval().requires_grad_(False)
    learned = encoders.add_low_rank(changed, 2, seed=0)
    torch.testing.assert_close(changed(x), before)
    with torch.no_grad():
        for parameter in learned:
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    weight = dict(model.named_modules())["3"].weight
    module = dict(changed.named_modules())["3"]
    change = module.parametrizations.weight[0]
    torch.testing.assert_close(module.weight, weight + (change.b @ change.a).reshape(weight.shape))
    moved = changed(x)
    assert not torch.allclose(moved, before)
    plain = encoders.merge_low_rank(changed)
    torch.testing.assert_close(plain(x), moved)
    assert plain.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ModelError, match="lower the rank"):
        encoders.add_low_rank(small(), 1000, seed=0)


def test_an_adapted_encoder_learns_and_the_given_one_stays():
    samples = clean(200)
    encoder = without_head(small(), samples)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    config = replace(PRESETS["code"], epochs=10, batch_size=16)
    model = adapt(encoder, samples, config=config, learning_rate=0.01, rank=2)
    assert (stages.predict(model, samples) == samples.labels).mean() > 0.8
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert model[0].state_dict().keys() == before.keys()
    moved = [k for k, v in model[0].state_dict().items() if not torch.equal(v, before[k])]
    assert moved
    assert not [k for k in moved if "running" in k]
    with pytest.raises(ConfigError, match="rank"):
        adapt(encoder, samples, rank=0)


# Pages


def test_the_report_tells_rates_and_spectra():
    x, y = planted()
    fitted, probe = (NMTune.fit(x, y, config=c) for c in (QUICK, replace(QUICK, hidden=False)))
    page = pages.report(fitted, probe)
    assert page.count('<svg class="plot"') == 1
    assert page.count("chosen") == 2
    assert f"{sve(fitted.spectra['transformed']):.3f}" in page
    assert f"{lsvr(fitted.spectra['features']):.3f}" in page
    assert "NaN" not in page
    assert "nan" not in page
    escaped = pages.page("<b>", [("a & b", {"<i>": np.array([1.0])})])
    assert "<i>" not in escaped
    assert "<b>" not in escaped


def test_a_spectrum_with_zeros_is_drawn():
    assert "nan" not in pages.page("s", [("s", {"s": spectra.singular_values(np.ones((4, 3)))})])


# Resume


@pytest.mark.parametrize("preset", ["mlp", "code"])
@pytest.mark.parametrize("steps", [3, 5])
def test_an_interrupted_head_resumes_bit_for_bit(preset, steps):
    x, y = planted()
    views = np.stack([x, x + 0.1, x - 0.1])
    config = replace(PRESETS[preset], epochs=4, learning_rates=(0.01,))

    def trained(*, checkpoint, progress):
        fitted = NMTune.fit(
            views, y, config=config, checkpoints=lambda name: checkpoint, progress=progress
        )
        return fitted.head

    assert_resumes(trained, steps=steps, first=(steps - 1) // 2 * 2 + 1)


def test_every_training_of_a_fit_has_its_own_checkpoint():
    x, y = planted()
    names: list[str] = []
    NMTune.fit(x, y, config=QUICK, checkpoints=lambda name: names.append(name))
    assert names == ["held-out-0.01", "held-out-0.001", "final"]


def test_an_interrupted_adaptation_resumes_bit_for_bit():
    samples = clean(60, view="crop-flip")
    encoder = without_head(small(), samples)
    config = replace(PRESETS["code"], epochs=3, batch_size=16)

    def trained(**how):
        return adapt(encoder, samples, config=config, learning_rate=0.01, rank=2, **how)

    assert_resumes(trained, steps=6, first=5)
