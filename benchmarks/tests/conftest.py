"""A small CIFAR-10 for all benchmarks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import nn

from expunge._core.rng import temp_seed
from expunge.models.zoo import resnet
from expunge_bench import cifar
from quick import few_trees as few_trees

N = 120


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 in the Hub's layout, small: ten classes of coloured noise."""
    path = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    for split, n in (("train", N), ("test", 40)):
        labels = np.arange(n) % 10
        images = []
        for label in labels:
            pixels = rng.integers(0, 60, (32, 32, 3)) + 18 * label
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = {"id": np.arange(n) + 1000, "image": images, "label": labels}
        if split == "train":
            table["human_random1"] = np.where(np.arange(n) % 6 == 0, (labels + 1) % 10, labels)
        pq.write_table(pa.table(table), path / f"{split}.parquet")
    return path


class SmallCifar(cifar.Cifar):
    """CIFAR-10 with a network that trains in a tenth of the time."""

    def network(self, seed: int) -> nn.Module:
        with temp_seed(seed, "network"):
            return resnet(classes=10, widths=(8, 16, 32), blocks=(1, 1, 1))


@pytest.fixture(scope="session")
def data(cifar_folder: Path) -> cifar.Cifar:
    return SmallCifar(cifar_folder)
