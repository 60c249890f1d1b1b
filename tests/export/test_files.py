"""An exported model predicts from files and Pillow images as from the data it was exported with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import expunge
from expunge.data import DataConfig, read
from expunge.errors import DataError, ModelError, RunError
from expunge.export.manifest import read_manifest, write_manifest
from expunge.models import mlp

MODULE = """
import numpy as np

def centred(image):
    pixels = np.asarray(image.resize((4, 4))).transpose(2, 0, 1)
    return pixels.astype(np.float32) / 255 - 0.5
"""


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Four pictures of several sizes in two class folders."""
    rng, files = np.random.default_rng(0), []
    for i, side in enumerate((8, 20, 9, 16)):
        file = tmp_path / "d" / ("cat" if i < 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
        files.append(file)
    return files


def export(samples: expunge.Samples, folder: Path, **settings: Any) -> expunge.ExportedModel:
    inputs = int(np.prod(samples.example().shape[1:]))
    how = {"inputs": inputs, "classes": len(samples.classes)}
    torch.manual_seed(0)
    expunge.export_model(
        mlp(**how), samples, folder, constructor="expunge.models:mlp", arguments=how, **settings
    )
    return expunge.load_exported_model(folder)


def rename_transform(folder: Path, name: str) -> None:
    """Write another name of the transform into a manifest."""
    manifest = read_manifest(folder)
    assert manifest.decoding is not None
    write_manifest(replace(manifest, decoding=replace(manifest.decoding, transform=name)), folder)


def check(exported: expunge.ExportedModel, samples: expunge.Samples, files: list[Path]) -> None:
    expected = exported(samples.inputs.batch(np.arange(len(samples))))
    pillow = [Image.open(file) for file in files]
    for given in (files, [str(f) for f in files], pillow, tuple(pillow)):
        torch.testing.assert_close(exported(given), expected)
    torch.testing.assert_close(exported(files[1]), expected[1:2])
    torch.testing.assert_close(exported(pillow[2]), expected[2:3])
    assert exported.predict(files) == [samples.classes[c] for c in expected.argmax(1)]


def test_resized_images_are_read_as_the_training_images_were(
    pictures: list[Path], tmp_path: Path
) -> None:
    config = DataConfig("d", size=8, mode="RGB", mean=(0.5,) * 3, std=(0.2,) * 3)
    samples = read(config, folder=tmp_path)
    check(export(samples, tmp_path / "out"), samples, pictures)


def test_a_transform_is_kept_by_its_name(pictures: list[Path], tmp_path: Path) -> None:
    name = f"centre_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    samples = read(DataConfig("d", transform=f"{name}:centred"), folder=tmp_path)
    out = tmp_path / "out"
    check(export(samples, out), samples, pictures)
    rename_transform(out, "no_such_module:centred")
    with pytest.raises(ModelError, match=r"(?s)cannot be imported.*copy no_such_module\.py into"):
        expunge.load_exported_model(out)


def test_a_processor_is_copied_into_the_export(pictures: list[Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    samples = read(DataConfig("d", transform="vit"), folder=tmp_path)
    out = tmp_path / "out"
    exported = export(samples, out)
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    check(expunge.load_exported_model(out), samples, pictures)
    assert exported.manifest.decoding is not None
    assert exported.manifest.decoding.transform == "processor"
    rename_transform(out, "../vit")
    with pytest.raises(RunError, match="a processor outside its folder"):
        expunge.load_exported_model(out)


def test_plain_pixels_are_read_from_files_of_their_size(
    pictures: list[Path], tmp_path: Path
) -> None:
    x = np.stack([np.asarray(Image.open(f).resize((8, 8))) for f in pictures])
    samples = expunge.from_arrays(x.transpose(0, 3, 1, 2), [0, 0, 1, 1])
    exported = export(samples, tmp_path / "out")
    torch.testing.assert_close(exported(pictures[0]), exported(samples.inputs.batch(np.arange(1))))
    with pytest.raises(DataError, match=r"expected uint8\[b, 3, 8, 8\]"):
        exported(pictures[1])


def test_inputs_that_come_from_no_files_are_refused(pictures: list[Path], tmp_path: Path) -> None:
    samples = expunge.from_arrays(np.eye(4, dtype=np.float32), [0, 0, 1, 1])
    exported = export(samples, tmp_path / "out")
    with pytest.raises(DataError, match=r"does not say how files become inputs\n.*transform=…"):
        exported.predict(pictures)


def test_files_that_cannot_be_read_are_named(pictures: list[Path], tmp_path: Path) -> None:
    samples = read(DataConfig("d", size=8), folder=tmp_path)
    exported = export(samples, tmp_path / "out")
    pictures[1].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot be decoded .*: .*1\.png"):
        exported.predict(pictures)
    with pytest.raises(DataError, match=r"No such file.*: .*nowhere\.png"):
        exported.predict("nowhere.png")


def test_a_data_set_in_python_names_its_transform(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"named_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    centred = getattr(__import__(name), "centred")  # noqa: B009
    items = [(centred(Image.open(f).convert("RGB")), i // 2) for i, f in enumerate(pictures)]
    samples = expunge.from_dataset(items)
    check(export(samples, tmp_path / "out", transform=f"{name}:centred"), samples, pictures)
