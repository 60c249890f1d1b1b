from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge._core.rng import generator
from expunge.errors import ConfigError, DataError
from expunge.nmtune import heads
from expunge_bench import nmtune
from expunge_bench.nmtune import corruptions, images
from expunge_bench.nmtune import tables as nmtune_tables
from expunge_bench.nmtune.features import FeatureSource
from oracles_text import encoder, news, stars

SIZES = nmtune.Sizes(pretrain=60, epochs=1, tune=60, test=30)


def pictures(n: int = 6, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


@pytest.mark.parametrize("kind", sorted(corruptions.IMAGE_CORRUPTIONS))
def test_corrupted_images_depend_on_the_seed_only(kind):
    pixels = pictures()
    before = pixels.copy()
    changed = corruptions.corrupt_images(pixels, kind, seed=0)
    assert changed.shape == pixels.shape
    assert changed.dtype == np.uint8
    assert (changed != pixels).mean() > 0.5
    assert np.array_equal(changed, corruptions.corrupt_images(pixels, kind, seed=0))
    assert np.array_equal(pixels, before)


def test_image_corruptions_have_their_stated_size():
    flat = np.full((1, 3, 64, 64), 128, dtype=np.uint8)
    assert (corruptions.corrupt_images(flat, "blur", seed=0) == 128).all()
    assert (corruptions.corrupt_images(flat, "contrast", seed=0) == 128).all()
    assert (corruptions.corrupt_images(flat, "brightness", seed=0) == 128 + 51).all()
    noisy = corruptions.corrupt_images(flat, "noise", seed=0).astype(float)
    assert noisy.std() / 255 == pytest.approx(corruptions.NOISE_SIGMA, rel=0.05)
    x = pictures(1, 8)
    small = corruptions.corrupt_images(x, "pixelate", seed=0)[0, 0].astype(int)
    for i, j in ((0, 0), (4, 6)):
        block = small[i : i + 2, j : j + 2]
        assert (block == block[0, 0]).all()
        assert block[0, 0] == pytest.approx(x[0, 0, i : i + 2, j : j + 2].mean(), abs=1)


def test_text_corruptions_have_their_stated_rate():
    rng = generator(0, "texts")
    text = news(1)[0]
    assert text.startswith(corruptions.headline(text, rng))
    wrong = corruptions.typos(text, rng)
    letters = [(a, b) for a, b in zip(text, wrong, strict=True) if a.isalpha()]
    assert np.mean([a != b for a, b in letters]) == pytest.approx(corruptions.TYPO_RATE, abs=0.08)
    assert all(a == b for a, b in zip(text, wrong, strict=True) if not a.isalpha())
    kept = corruptions.dropped(text, rng).split()
    assert len(kept) / len(text.split()) == pytest.approx(0.5, abs=0.2)
    rest = iter(text.split())
    assert all(word in rest for word in kept)  # in their order
    assert [change("", rng) for change in corruptions.TEXT_CORRUPTIONS.values()] == ["", "", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The layout of the data, with a few small images and articles in it."""
    root = tmp_path_factory.mktemp("data")
    (root / "cifar10").mkdir()
    (root / "bbc_news_summary").mkdir()
    rng = np.random.default_rng(0)
    for part, n in {"train": 200, "test": 80}.items():
        labels, images = np.arange(n) % 10, []
        for label in labels:
            pixels = np.full((32, 32, 3), 20 * label, dtype=np.uint8)
            pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"id": np.arange(n), "image": images, "label": labels})
        pq.write_table(table, root / "cifar10" / f"{part}.parquet")
        texts = [*news(n // 2, seed=n), *stars(n // 2, seed=n)]
        category = ["news"] * (n // 2) + ["stars"] * (n // 2)
        table = pa.table({"document": texts, "category": category})
        pq.write_table(table, root / "bbc_news_summary" / f"{part}.parquet")
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads with short trainings."""
    how = {"epochs": 4, "learning_rates": (0.01, 0.003)}
    short = {k: replace(v, **how) for k, v in heads.PRESETS.items()}
    monkeypatch.setattr(heads, "PRESETS", short)
    monkeypatch.setattr(images, "ADAPTATION", replace(images.ADAPTATION, epochs=1))


def sources(folder: Path, out: Path, **changes: object) -> list[FeatureSource]:
    settings = {"rates": (0.0, 0.3), "articles": (60,), "encoder_name": "words"}
    return nmtune.find_sources(
        folder, sizes=SIZES, encoder=lambda: encoder, out=out, **{**settings, **changes}
    )


def test_each_row_is_computed_once_and_tables_are_written(folder, tmp_path, quick):
    found = sources(folder, tmp_path)
    rows = nmtune.bench(found, methods=("linear", "code"), out=tmp_path)
    assert len(rows) == 2 * 2 + 2
    assert {r["data"] for r in rows} == {"cifar10", "bbc"}
    for row in rows:
        json.dumps(row, allow_nan=False)
        values = list(row["corruptions"].values())
        assert row["out_of_domain"] == pytest.approx(np.mean(values))
        assert row["learning_rate"] in (0.01, 0.003)
    assert [len(r["corruptions"]) for r in rows if r["data"] == "bbc"] == [3] * 2
    best = [r["in_domain"] for r in rows if r["data"] == "bbc" and r["method"] == "linear"]
    assert min(best) > 0.9
    page = (tmp_path / "spectra.html").read_text()
    assert page.count('<svg class="plot"') == 3
    markdown = (tmp_path / "table.md").read_text()
    assert "Δ vs linear, out-of-domain (pp)" in markdown
    # All rows exist: no network, embedding or head is computed again.
    (tmp_path / "encoders").rename(tmp_path / "gone")
    broken = sources(folder, tmp_path, encoder_name="none")
    assert nmtune.bench(broken, methods=("linear", "code"), out=tmp_path) == rows
    more = nmtune.bench(found, methods=("mlp",), out=tmp_path)
    assert len(more) == len(rows) + 3


def test_an_adapted_encoder_has_a_row(folder, tmp_path, quick):
    found = sources(folder, tmp_path, rates=(0.3,))
    rows = nmtune.bench(found, methods=("adapted",), out=tmp_path)
    assert [(r["data"], r["learning_rate"]) for r in rows] == [("cifar10", None)]
    assert len(rows[0]["corruptions"]) == 6


def test_encoders_are_pretrained_on_other_samples_and_classes_than_heads(folder, tmp_path):
    source = sources(folder, tmp_path)[0]
    known = images._draw_samples(
        source.dataset.train, images.PRETRAINING_CLASSES, 60, seed=0, what="pretrain"
    )
    tune, test = source.tuning_samples(0)
    assert not set(known.ids.tolist()) & set(tune.ids.tolist())
    assert set(known.classes).isdisjoint(tune.classes)
    assert tune.classes == test.classes
    right = source.dataset.train.labels[np.searchsorted(source.dataset.train.ids, tune.ids)]
    assert np.array_equal(right - 5, tune.labels)


def test_differences_are_paired_and_averaged_over_noise_rates_before_seeds():
    def row(method: str, noise: float, seed: int, value: float) -> dict[str, object]:
        common = {"data": "d", "tune": 9, "rate": noise, "seed": seed, "method": method}
        numbers = {"in_domain": value, "out_of_domain": value, "corruptions": {"k": value}}
        return {**common, **numbers, "sve": 1.0, "lsvr": 1.0, "learning_rate": 0.1, "seconds": 1.0}

    rows = [
        *(row("linear", noise, seed, 0.5) for noise in (0.0, 0.1) for seed in (0, 1)),
        *(row("code", noise, 0, 0.6 + noise) for noise in (0.0, 0.1)),
        *(row("code", noise, 1, 0.7 - noise) for noise in (0.0, 0.1)),
    ]
    table = nmtune_tables.summary(rows)
    lead = dict(zip(table.head, table.rows[1], strict=True))["Δ vs linear, out-of-domain (pp)"]
    assert lead == "+15.00 ± 0.00"  # 10, 20 → 15 and 20, 10 → 15
    assert table.rows[0][6:8] == ("–", "–")
    assert len(nmtune_tables.by_noise_rate(rows).rows) == 4


def test_impossible_requests_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'code'"):
        nmtune.bench(sources(folder, tmp_path), methods=("cod",), out=tmp_path)
    with pytest.raises(DataError, match="found neither"):
        sources(tmp_path, tmp_path)
    with pytest.raises(DataError, match="n = 5,000 samples requested, the data set has 200"):
        nmtune.bench(sources(folder, tmp_path, articles=(5000,))[1:], out=tmp_path)
