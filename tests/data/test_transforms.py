"""A user's own preprocessing, named in a spec, is what the stored inputs have been through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.data import DataConfig, LazyInputs, Samples, check_alike, images, read
from expunge.errors import ConfigError, DataError, ModelError

MODULE = """
import numpy as np
import torch

def prepare(image):
    pixels = np.asarray(image.resize((4, 4)))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255 - 0.5

class Resize:
    def __init__(self, side=6):
        self.side = side
    def __call__(self, image):
        return np.asarray(image.resize((self.side, self.side))).transpose(2, 0, 1)

def half(size, divisor=2):
    return lambda image: image.resize((size // divisor, size // divisor))

def drawn(image):
    return torch.rand(3, 4, 4)

def broken(image):
    raise ValueError("no such thing")

def words(image):
    return "text"

def loudness(clip):
    assert clip.dtype == np.float32 and abs(clip).max() <= 1
    return abs(clip).reshape(4, -1).mean(axis=1)

def doubled(x):
    return 2 * x

def jitter(x, generator):
    return x + torch.rand(1, generator=generator)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A module with transforms, and pictures of several sizes and modes."""
    name = f"transforms_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "name").write_text(name)
    rng = np.random.default_rng(0)
    for i, (side, mode) in enumerate([(8, "RGB"), (20, "L"), (9, "RGBA"), (16, "P")]):
        image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        (tmp_path / "d" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(tmp_path / "d" / "ab"[i % 2] / f"{i}.png")
    return tmp_path


def named(folder: Path, function: str) -> str:
    return f"{(folder / 'name').read_text()}:{function}"


def here(folder: Path, function: str, path: str = "d", **settings: Any) -> Samples:
    return read(DataConfig(path, transform=named(folder, function), **settings), folder=folder)


def pictures(folder: Path, samples: Samples) -> list[Image.Image]:
    return [Image.open(folder / "d" / i).convert("RGB") for i in samples.ids]


def test_a_function_prepares_images_of_any_size_and_mode(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = here(folder, "prepare")
    expected = np.stack(
        [
            np.asarray(p.resize((4, 4))).transpose(2, 0, 1).astype(np.float32) / 255 - 0.5
            for p in pictures(folder, resident)
        ]
    )
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 10)
    lazy = here(folder, "prepare")
    assert isinstance(lazy.inputs, LazyInputs)
    for samples in (resident, lazy):
        torch.testing.assert_close(samples.batch(np.arange(4)), torch.from_numpy(expected))
    assert here(folder, "Resize").fingerprint() != lazy.fingerprint()


def test_classes_and_factories_are_called_with_their_arguments(folder: Path) -> None:
    assert here(folder, "Resize").example().shape == (2, 3, 6, 6)
    small = here(folder, "Resize", transform_arguments={"side": 5})
    assert small.example().shape == (2, 3, 5, 5)
    assert small.inputs.batch(np.arange(1)).dtype == torch.uint8
    made = here(folder, "half", transform_arguments={"size": 8})
    assert made.example().shape == (2, 3, 4, 4)
    assert made.decoding is not None
    assert made.decoding.transform is not None
    assert made.decoding.transform.arguments == {"size": 8}


def test_broken_images_are_skipped_before_the_transform(folder: Path) -> None:
    (folder / "d" / "a" / "x.png").write_bytes(b"no image")
    samples = here(folder, "prepare")
    assert len(samples) == 4
    assert list(samples.skipped) == ["a/x.png"]


def test_clips_and_stored_inputs_are_transformed(folder: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    clips = rng.integers(-9000, 9000, (4, 400)).astype(np.int16)
    for i, clip in enumerate(clips):
        (folder / "s" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "s" / "ab"[i % 2] / f"{i}.wav", clip, 8000)
    samples = here(folder, "loudness", path="s")
    expected = np.abs(clips / 32768).reshape(4, 4, -1).mean(axis=2)[[0, 2, 1, 3]]
    np.testing.assert_allclose(samples.batch(np.arange(4)).numpy(), expected, rtol=1e-5)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, y=[0, 1, 0, 1])
    np.testing.assert_array_equal(here(folder, "doubled", path="x.npz").batch(np.arange(4)), 2 * x)


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("drawn", DataError, r"the transform is random.*\n.*random ones are views"),
        ("broken", DataError, r"make the transform fail \(ValueError: no such thing \(.*line"),
        ("words", DataError, "it returned a str, expected a tensor or an array"),
        ("prepared", ModelError, "(?s)has no function 'prepared'.*did you mean 'prepare'"),
    ],
)
def test_transforms_that_do_not_fit_are_refused(
    function: str, kind: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(kind, match=message):
        here(folder, function)


def test_a_folder_without_a_processor_is_refused(folder: Path) -> None:
    for name in ("d", "nowhere"):
        with pytest.raises(ConfigError, match="neither a function nor the folder of a processor"):
            read(DataConfig("d", transform=name), folder=folder)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'width'"):
        here(folder, "Resize", transform_arguments={"width": 3})


def test_sets_that_were_prepared_in_two_ways_are_refused(folder: Path) -> None:
    first, same, other = (here(folder, f) for f in ("prepare", "prepare", "Resize"))
    check_alike(first, same)
    with pytest.raises(DataError, match=r"after .*:prepare in .* after .*:Resize here"):
        check_alike(first, other)


def test_a_view_can_be_named_like_a_transform(folder: Path) -> None:
    samples = here(folder, "prepare", view=named(folder, "jitter"))
    x = samples.batch(np.arange(2))
    assert samples.view is not None
    shift = samples.view(x, torch.Generator().manual_seed(0)) - x
    assert shift.std() < 1e-6
    assert shift.mean() > 0.01


def test_a_processor_of_hugging_face_prepares_images(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"height": 8, "width": 8}
    processor = transformers.ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.2] * 3)
    processor.save_pretrained(folder / "vit")
    samples = read(DataConfig("d", transform="vit"), folder=folder)
    expected = processor(images=pictures(folder, samples), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(samples.batch(np.arange(4)).numpy(), expected, atol=1e-6)
