"""Example folders: data of scikit-learn or generated data, with wrong labels, and a spec.

The labels of the training and the held-out set are corrupted, those of the validation set are not.
"""

from __future__ import annotations

import csv
import wave
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from expunge._core.arrays import Array, Ints
from expunge._core.rng import generator
from expunge.demo.noise import wrong_labels
from expunge.errors import ConfigError
from expunge.scaffold.spec_file import Request, write_spec
from expunge.storage.atomic_files import new_folder

ExampleName = Literal["digits", "images", "text", "sound", "table"]

NOISE_RATE = 0.3
SPEC = "spec.toml"
_SAMPLE_RATE = 8000
_SIDE = 16
_WIDTHS = {"widths": [16, 32, 64]}


class _Labelled(NamedTuple):
    """Inputs ``[n, …]``, right labels and class names."""

    x: Array
    y: Ints
    classes: tuple[str, ...]


_Writer = Callable[[Path, _Labelled], Path]


class _Example(NamedTuple):
    """Where the data come from, how a set is written, epochs of the training, and its network."""

    load: Callable[[], _Labelled]
    write: _Writer
    epochs: int
    arguments: Mapping[str, Any] = {}


def write_example(name: ExampleName, folder: Path) -> list[str]:
    """Write a folder with noisy data and a spec that repairs a network trained on them.

    Parameters
    ----------
    name
        ``"digits"`` (arrays), ``"images"`` (PNG files), ``"text"`` (embeddings of texts),
        ``"sound"`` (WAV files) or ``"table"`` (CSV).
    folder
        A new folder.

    Returns
    -------
    list
        What the spec says of data and model, a line a fact.

    Raises
    ------
    ConfigError
        If the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            "this folder is not empty", where=str(folder), fix="name a new one with --out"
        )
    example = _EXAMPLES[name]
    with new_folder(folder, error=ConfigError) as made:
        train = _write_splits(made, example)
        # Without augmentation the network memorises the wrong labels.
        training = {"epochs": example.epochs, "augment": False}
        run = folder.resolve().name
        request = Request(train, arguments=example.arguments, training=training, name=run)
        return write_spec(request, made / SPEC)


def _write_splits(folder: Path, example: _Example) -> Path:
    """Write three fifths for training, a fifth held out and a fifth for validation."""
    data = example.load()
    order = generator(0, "example", "split").permutation(len(data.y))
    ends = [0, len(order) * 3 // 5, len(order) * 4 // 5, len(order)]
    paths = []
    for k, name in enumerate(("train", "val", "test")):
        rows = order[ends[k] : ends[k + 1]]
        labels = data.y[rows]
        if name != "test":
            labels = wrong_labels(
                labels, rate=NOISE_RATE, noise="symmetric", classes=len(data.classes), seed=k
            )
        part = data._replace(x=data.x[rows], y=labels)
        paths.append(example.write(folder / name, part))
    return paths[0]


def _digits() -> _Labelled:
    """Handwritten digits of scikit-learn: 1,797 images, 8 × 8."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[:, None] / 16.0).astype(np.float32)
    return _Labelled(x, digits.target.astype(np.int64), tuple(map(str, range(10))))


def _patches() -> _Labelled:
    """Squares of 16 × 16 pixels of the two photographs of scikit-learn: a temple, a flower."""
    from sklearn.datasets import load_sample_image

    x: list[Array] = []
    y: list[int] = []
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        photo = load_sample_image(name)
        rows, columns = (side // _SIDE for side in photo.shape[:2])
        photo = photo[: rows * _SIDE, : columns * _SIDE]
        squares = photo.reshape(rows, _SIDE, columns, _SIDE, 3).swapaxes(1, 2)
        x += list(squares.reshape(-1, _SIDE, _SIDE, 3)[::3])  # every third: they are enough
        y += [label] * (len(x) - len(y))
    return _Labelled(np.stack(x), np.array(y), ("temple", "flower"))


def _docstrings() -> _Labelled:
    """Embeddings of docstrings of four installed libraries, by latent semantic analysis."""
    import numpy
    import scipy.special
    import scipy.stats
    import torch.nn.functional
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    modules = (numpy, scipy.special, scipy.stats, torch.nn.functional)
    texts: list[str] = []
    y: list[int] = []
    for label, module in enumerate(modules):
        documented = (getattr(value, "__doc__", None) for value in vars(module).values())
        found = {d.strip()[:400] for d in documented if isinstance(d, str) and len(d) > 80}
        found -= set(texts)
        texts += sorted(found)
        y += [label] * len(found)
    weights = TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(texts)
    x = TruncatedSVD(64, random_state=0).fit_transform(weights).astype(np.float32)
    # Texts that differ in rare words only have equal embeddings; one of each stays.
    kept = np.sort(np.unique(x.round(5), axis=0, return_index=True)[1])
    return _Labelled(x[kept], np.array(y)[kept], tuple(module.__name__ for module in modules))


def _tones() -> _Labelled:
    """Generated clips of half a second: a tone, a rising tone, clicks; all with hiss."""
    rng = generator(0, "example", "tones")
    t = np.arange(_SAMPLE_RATE // 2) / _SAMPLE_RATE
    x, y = [], np.arange(300) % 3
    for label in y:
        low = rng.uniform(300, 1500)
        tone = np.sin(2 * np.pi * low * t)
        rising = np.sin(2 * np.pi * (low + 1500 * t) * t)
        clicks = (np.arange(len(t)) % int(rng.uniform(400, 900)) < 20).astype(float)
        clip = (tone, rising, clicks)[label] + 0.1 * rng.standard_normal(len(t))
        x.append(np.clip(clip * rng.uniform(4000, 12000), -32768, 32767).astype("<i2"))
    return _Labelled(np.stack(x), y, ("tone", "rising", "clicks"))


def _tumours() -> _Labelled:
    """Measurements of 569 tumours of the breast, from scikit-learn."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return _Labelled(data.data, data.target.astype(np.int64), ("malignant", "benign"))


def _write_arrays(path: Path, data: _Labelled) -> Path:
    file = path.with_suffix(".npz")
    np.savez(file, x=data.x, y=np.array(data.classes)[data.y])
    return file


def _write_files(path: Path, data: _Labelled, *, suffix: str) -> Path:
    """One file a sample, in class folders."""
    for i, (x, label) in enumerate(zip(data.x, data.y, strict=True)):
        file = path / data.classes[label] / f"{i:04}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            Image.fromarray(x).save(file)
            continue
        with wave.open(str(file), "wb") as clip:
            clip.setnchannels(1)
            clip.setsampwidth(2)
            clip.setframerate(_SAMPLE_RATE)
            clip.writeframes(x.tobytes())
    return path


def _write_csv(path: Path, data: _Labelled) -> Path:
    from sklearn.datasets import load_breast_cancer

    file = path.with_suffix(".csv")
    names = [name.replace(" ", "_") for name in load_breast_cancer().feature_names]
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow([*names, "diagnosis"])
        for x, label in zip(data.x, data.y, strict=True):
            rows.writerow([*(f"{value:g}" for value in x), data.classes[label]])
    return file


_EXAMPLES: dict[str, _Example] = {
    "digits": _Example(_digits, _write_arrays, 40, {"widths": [16, 32], "blocks": [1, 1]}),
    "images": _Example(_patches, partial(_write_files, suffix=".png"), 40, _WIDTHS),
    "text": _Example(_docstrings, _write_arrays, 40),
    "sound": _Example(_tones, partial(_write_files, suffix=".wav"), 40),
    "table": _Example(_tumours, _write_csv, 60),
}
