"""All readers with a valid file each, and mutations of these files.

A reader may return or raise one of our errors; anything else is a finding.
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import expunge
from expunge.data import DataConfig, read
from expunge.data.feature_files import read_labelled_features
from expunge.errors import ExpungeError
from expunge.models.zoo import mlp
from expunge.nmtune import NMTune, NMTuneConfig
from expunge.nmtune.files import read_embeddings
from expunge.spec_check import check_spec
from expunge.storage.artefacts import Artefact, read_artefact, write_artefact
from expunge.storage.json_files import read_json
from expunge.storage.weights import load_weights, save_weights
from expunge.text.documents import DocumentReader
from oracles_specs import SPEC, merged, toml

X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
Y = np.arange(12) % 2


class Reader(NamedTuple):
    """The name of a file, what makes a valid one, and what reads it and all that is in it."""

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def _data(path: Path, **settings: object) -> None:
    samples = read(DataConfig(path=path.name, **settings), folder=path.parent)
    samples.batch(np.arange(len(samples)))
    samples.fingerprint()


def _image(i: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 20 * i, dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()


def _hub(path: Path) -> None:
    """Images in the layout of the Hub."""
    names = {"info": {"features": {"label": {"names": ["a", "b"]}, "image": {"_type": "Image"}}}}
    images = [{"bytes": _image(i), "path": f"{i}.png"} for i in range(12)]
    table = pa.table({"image": images, "label": Y})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), path)


def _shards(path: Path) -> None:
    for file in (path, path.with_name("b.parquet")):
        _hub(file)


def _tar(path: Path) -> None:
    """Samples of an image, a label and a note."""
    with tarfile.open(path, "w") as tar:
        for i, y in enumerate(Y):
            about = json.dumps({"label": int(y)}).encode()
            for name, data in (
                (f"{i}.png", _image(i)),
                (f"{i}.cls", b"%d" % y),
                (f"{i}.json", about),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _audio(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for i, folder in enumerate(("a", "b")):
        (path.parent / folder).mkdir(exist_ok=True)
        with wave.open(str(path.parent / folder / "x.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.arange(i, 800 + i, dtype=np.int16).tobytes())
    path.write_bytes((path.parent / "a" / "x.wav").read_bytes())


def _read_audio(path: Path) -> None:
    (path.parent / "a" / "x.wav").write_bytes(path.read_bytes())
    samples = read(DataConfig(path=".", source="folder"), folder=path.parent)
    samples.batch(np.arange(len(samples)))


def _stage(path: Path) -> None:
    artefact = Artefact({"a": [1, 2.5]}, {"rows": pa.table({"id": Y})}, {"w": torch.tensor(X)})
    write_artefact(path.parent, artefact, {"key": {"seed": 0}, "seconds": 1.0})


@cache
def _head() -> NMTune:
    config = NMTuneConfig(hidden=False, learning_rates=(0.1,), epochs=2)
    return NMTune.fit(X, Y, config=config)


def _export(path: Path) -> None:
    folder = path.parent / "out"
    how = {"constructor": "expunge.models:mlp", "arguments": {"inputs": 4, "classes": 2}}
    expunge.export_model(mlp(inputs=4, classes=2), (X, Y), folder, **how)
    for file in folder.iterdir():
        file.rename(path.parent / file.name)
    folder.rmdir()


def _load(path: Path) -> None:
    load_weights(mlp(inputs=4, classes=2), path)


def _documents(path: Path) -> None:
    for document in DocumentReader().read(path):
        json.dumps(document.record, default=str)


def _write_spec(path: Path) -> None:
    path.write_text(toml(merged(SPEC, {"data": {"train": {"path": "train.npz"}}})), "utf-8")


def _legacy(path: Path) -> None:
    torch.save(mlp(inputs=4, classes=2).state_dict(), path, _use_new_zipfile_serialization=False)


def _arrays(path: Path) -> None:
    np.savez(path, x=X, y=np.array(["a", "b"])[Y], ids=Y * 100 + np.arange(12))


def _table(path: Path) -> None:
    pq.write_table(pa.table({"x": list(X), "y": Y.astype(str), "id": np.arange(12)}), path)


def _lines(path: Path) -> None:
    rows = [{"x": x.tolist(), "y": int(y), "id": i} for i, (x, y) in enumerate(zip(X, Y))]  # noqa: B905
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


READERS: dict[str, Reader] = {
    "arrays": Reader("d.npz", _arrays, _data),
    "compressed arrays": Reader("d.npz", lambda p: np.savez_compressed(p, x=X, y=Y), _data),
    "parquet": Reader("d.parquet", _table, lambda p: _data(p, input="x", label="y", id="id")),
    "hub": Reader("d.parquet", _hub, _data),
    "shards": Reader("a.parquet", _shards, lambda p: _data(p.parent, source="parquet")),
    "tar": Reader("d.tar", _tar, _data),
    "json lines": Reader("d.jsonl", _lines, lambda p: _data(p, input="x", label="y", id="id")),
    "csv": Reader(
        "d.csv",
        lambda p: p.write_text(
            "a,b,y\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(*X.T[:2], Y, strict=True))
        ),
        lambda p: read_labelled_features(p, label="y"),
    ),
    "features": Reader(
        "d.npz", _arrays, lambda p: read_labelled_features(p, label="y", features=("x",))
    ),
    "audio": Reader("clip.wav", _audio, _read_audio),
    "embeddings": Reader(
        "d.npy", lambda p: np.save(p, X), lambda p: read_embeddings(p, column="x")
    ),
    "spec": Reader("s.toml", _write_spec, check_spec),
    "weights": Reader("w.safetensors", lambda p: save_weights(mlp(inputs=4, classes=2), p), _load),
    "torch": Reader("w.pt", lambda p: torch.save(mlp(inputs=4, classes=2).state_dict(), p), _load),
    "legacy torch": Reader("w.pt", _legacy, _load),
    "head": Reader(
        "nmtune.safetensors", lambda p: _head().save(p.parent), lambda p: NMTune.load(p.parent)
    ),
    "stage note": Reader("stage.json", _stage, lambda p: read_artefact(p.parent)),
    "stage table": Reader("rows.parquet", _stage, lambda p: read_artefact(p.parent)),
    "stage tensors": Reader("tensors.safetensors", _stage, lambda p: read_artefact(p.parent)),
    "manifest": Reader("manifest.json", _export, lambda p: expunge.load_exported_model(p.parent)),
    "json": Reader("a.json", lambda p: p.write_text('{"a": [1, 2, {"b": null}]}'), read_json),
    "documents": Reader(
        "d.jsonl",
        lambda p: p.write_text('{"document": "One. Two.", "id": 3}\n{"document": "é"}\n'),
        _documents,
    ),
    "document table": Reader(
        "d.parquet", lambda p: pq.write_table(pa.table({"document": ["a", "b"]}), p), _documents
    ),
}
_CHUNKS = (
    b"\0" * 8,
    b"\xff" * 8,
    b"9" * 5000,
    b"-1e999",
    b"[" * 3000,
    b'{"a":' * 3000,
    b'"\\ud800"',
    b"\x1b[2J",
    b"../../etc/passwd",
    b"NaN",
    b"\n",
    b",",
)


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Flip, cut, repeat, exchange or insert bytes at random places."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        a, b = sorted(int(i) for i in random.integers(0, len(changed) + 1, 2))
        match int(random.integers(0, 7)):
            case 0 | 1 if changed:
                changed[min(a, len(changed) - 1)] ^= 1 << int(random.integers(0, 8))
            case 2:
                del changed[a:]
            case 3:
                del changed[a : min(b, a + 64)]
            case 4:
                changed[a:a] = changed[a : min(b, a + 64)]
            case 5 if changed:
                changed[min(a, len(changed) - 1)] = int(random.integers(0, 256))
            case _:
                changed[a:a] = _CHUNKS[int(random.integers(0, len(_CHUNKS)))]
    return bytes(changed)


class Prepared:
    """A reader with its valid file, which `try_mutated` replaces."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.reader = name, READERS[name]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / self.reader.file
        self.reader.make(self.path)
        self.valid = self.path.read_bytes()
        self.reader.read(self.path)

    def try_mutated(self, seed: int) -> str:
        """What a mutated file gave: ``read``, ``refused``, or the foreign exception."""
        random = np.random.default_rng([seed, sum(self.name.encode())])
        self.path.write_bytes(mutate(self.valid, random))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.reader.read(self.path)
        except ExpungeError as error:
            return "refused" if str(error).strip() else "an empty error"
        except Exception as error:  # noqa: BLE001
            return f"{self.name}, seed {seed}: {type(error).__name__}: {error}"
        return "read"
