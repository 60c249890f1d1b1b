"""A spec with its data and weights in a folder, any entry replaced by a keyword."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from expunge.data import Samples
from expunge.storage.weights import save_weights
from oracles_digits import clean, memorised, noisy

SPEC: dict[str, Any] = {
    "recipe": "default",
    "seed": 0,
    "baselines": ["no-op"],
    "model": {
        "constructor": "expunge.models:mlp",
        "arguments": {"inputs": 64, "classes": 10, "hidden": 48},
        "weights": "weights.safetensors",
    },
    "data": {"train": {"path": "train.npz"}, "validation": {"path": "test.npz"}},
    "score": {"detectors": ["margin", "knn_disagreement"]},
    "prune": {"fraction": 0.2},
    "tune": {"epochs": 1, "batch_size": 32},
}


def save_npz(path: Path, samples: Samples) -> None:
    x = samples.inputs.batch(np.arange(len(samples))).numpy()
    np.savez(path, x=x, y=samples.labels, ids=samples.ids)


def toml(table: dict[str, Any], prefix: str = "") -> str:
    """TOML of plain values and nested tables; None leaves an entry out."""
    values = {k: v for k, v in table.items() if not isinstance(v, dict)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if v is not None]
    for name, inner in table.items():
        if isinstance(inner, dict):
            lines += [f"[{prefix}{name}]", toml(inner, f"{prefix}{name}.")]
    return "\n".join(lines)


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else value
    return result


def write_spec(folder: Path, changes: dict[str, Any] | None = None, name: str = "spec") -> Path:
    """The spec file; nested tables in `changes` are merged, None removes."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.npz").exists():
        save_npz(folder / "train.npz", noisy(200))
        save_npz(folder / "test.npz", clean(100))
        save_weights(memorised(), folder / "weights.safetensors")
    path = folder / f"{name}.toml"
    path.write_text(toml(merged(SPEC, changes or {})), encoding="utf-8")
    return path
