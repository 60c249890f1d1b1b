"""Decoding in worker processes: the same inputs in the same order, and what goes wrong."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.data import DataConfig, LazyInputs, from_dataset, images, read, workers
from expunge.data.workers import Workers, choose_workers
from expunge.errors import DataError
from oracles_workers import Items


def lazy(n_workers: int, *, fails: bool = False) -> Any:
    return from_dataset(Items(fails=fails), max_bytes_in_memory=0, workers=n_workers)


def test_two_processes_read_what_one_reads_in_the_same_order() -> None:
    one, two = lazy(0), lazy(2)
    assert one.fingerprint() == two.fingerprint()
    order = np.array([11, 0, 5, 5, 3])
    assert torch.equal(two.batch(order), one.batch(order))
    read_ahead = [two.batch(rows) for rows in two.batches(5)]
    assert torch.equal(torch.cat(read_ahead), one.batch(np.arange(12)))
    part = two.subset(np.array([7, 2]))
    assert torch.equal(
        torch.cat([part.batch(rows) for rows in part.batches(1)])[:, 0], torch.tensor([7.0, 2.0])
    )


def test_a_worker_that_dies_and_an_item_that_fails_are_errors() -> None:
    samples = lazy(1, fails=True)
    with pytest.raises(DataError, match="data, item 7: ValueError: no item"):
        samples.batch(np.arange(6, 10))
    with pytest.raises(DataError, match=r"a worker process that decodes inputs ended: .*\n.*fewer"):
        samples.batch(np.arange(12))
    assert samples.batch(np.array([1]))[0, 0] == 1


def test_what_cannot_be_sent_to_a_worker_is_an_error() -> None:
    stuck = Workers(type, 1)
    with pytest.raises(DataError, match="cannot be read in worker processes: PicklingError"):
        stuck.results(stuck.submit([threading.Lock()]))


def test_images_are_decoded_by_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 0, 0)).save(file, "PNG")
            (tmp_path / "data" / name / f"{i}.png").write_bytes(file.getvalue())
    (tmp_path / "data/cat/3.png").write_bytes(b"broken")

    def here(n_workers: int | None) -> Any:
        config = DataConfig("data", size=4, workers=n_workers)
        return read(config, folder=tmp_path)

    whole, everything = here(0), np.arange(9)
    in_memory = here(1)
    assert torch.equal(in_memory.batch(everything), whole.batch(everything))
    assert in_memory.skipped == whole.skipped
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 100)
    decoded = here(1)
    assert isinstance(decoded.inputs, LazyInputs)
    assert torch.equal(decoded.batch(everything), whole.batch(everything))
    assert decoded.skipped == whole.skipped
    assert decoded.fingerprint() == here(0).fingerprint()


def test_the_default_follows_from_size_cores_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert choose_workers(None, workers.MIN_BYTES - 1) == 0
    assert choose_workers(None, workers.MIN_BYTES) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_workers(None, workers.MIN_BYTES) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert choose_workers(None, workers.MIN_BYTES) == 0
    assert choose_workers(3, 0) == 3
    with pytest.raises(DataError, match=r"workers must be 0 or more, not -1"):
        choose_workers(-1, 0)
