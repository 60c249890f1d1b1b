"""A network for words, from files of sound to the report, by a spec alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from expunge import cli, pipeline, specs
from expunge.evaluation import metrics
from expunge.export.exported_model import export_run
from expunge.spec_check import check_spec
from oracles_audio import encoded
from oracles_specs import toml

pytestmark = pytest.mark.usefixtures("few_trees")

RATE = 8000
TONES = {"low": 400.0, "middle": 900.0, "high": 2000.0}


def write_folder(folder: Path, n: int, *, seed: int, wrong: float = 0.0) -> None:
    """Class folders of noisy tones as FLAC files, some of them in the wrong folder."""
    rng, t = np.random.default_rng(seed), np.arange(2000) / RATE
    names = list(TONES)
    for i in range(n):
        given = i % 3 if rng.random() >= wrong else (i + rng.integers(1, 3)) % 3
        hertz = list(TONES.values())[i % 3] * rng.uniform(0.9, 1.1)
        sound = 0.2 * np.sin(2 * np.pi * hertz * t) + 0.1 * rng.standard_normal(len(t))
        file = folder / names[given] / f"{seed}-{i:03d}.flac"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded((32767 * sound).astype(np.int16), sample_rate=RATE, kind="FLAC"))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_folder(folder / "train", 150, seed=1, wrong=0.25)
    write_folder(folder / "test", 60, seed=2)
    (folder / "train" / "low" / "broken.wav").write_bytes(b"RIFF")
    network = {
        "classes": 3,
        "sample_rate": RATE,
        "n_mels": 20,
        "widths": [8, 12, 12],
        "strides": [2, 1],
    }
    text = toml(
        {
            "baselines": ["finetune-only"],
            "model": {"constructor": "expunge.models:kws", "arguments": network},
            "train": {"epochs": 6, "batch_size": 25, "lr": 0.1, "precision": "float32"},
            "data": {
                "sample_rate": RATE,
                "seconds": 0.25,
                "view": "speech",
                "train": {"path": "train"},
                "validation": {"path": "test"},
            },
            "score": {
                "detectors": ["augmented_margin", "lda_margin"],
                "views": 2,
                "precision": "float32",
            },
            "prune": {"fraction": 0.2},
            "tune": {"epochs": 6, "batch_size": 25, "precision": "float32"},
        }
    )
    (folder / "spec.toml").write_text(text)
    return folder / "spec.toml"


def test_check_names_what_is_left_out_and_that_is_no_problem(spec):
    notes: list[str] = []
    assert check_spec(spec, on_note=notes.append) == []
    assert notes == [
        "training data, left out: samples that cannot be decoded (damaged, or no audio): "
        "ids low/broken.wav"
    ]


def test_the_command_prints_what_is_left_out_and_ends_well(spec):
    said = CliRunner().invoke(cli.app, ["check", str(spec)])
    assert said.exit_code == 0
    assert "· training data, left out: samples that cannot be decoded" in said.stdout
    said = CliRunner().invoke(cli.app, ["check", str(spec), "--json"])
    assert len(json.loads(said.stdout)["notes"]) == 1


def test_a_spec_repairs_a_network_for_words_from_files_to_the_report(spec, tmp_path):
    job = specs.load_spec(spec, out=tmp_path / "run")
    result = pipeline.repair(job.model, job.train, job.validation, **job.options)
    assert result.plan is not None
    assert result.plan.granted > 0
    assert result.size_after.parameters < result.size_before.parameters
    assert result.after.accuracy.value > 0.9
    wrong = np.array([job.train.classes[c] for c in job.train.labels]) != _right(job.train.ids)
    assert metrics.detection(wrong, result.partition.p_noisy)["auroc"] > 0.95
    page = (tmp_path / "run" / "report.html").read_text()
    flagged = int(result.partition.flagged.sum())
    assert page.count("<audio controls") == min(48, flagged) > 10
    assert "low/broken.wav" in page
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(summary["skipped"]["training data"]) == ["low/broken.wav"]
    assert "low/broken.wav" in (tmp_path / "run" / "report.md").read_text()
    exported = export_run(spec, tmp_path / "out", run=tmp_path / "run")
    clips = job.validation.inputs.batch(np.arange(60))
    right = np.array(job.train.classes)[job.validation.labels]
    assert (np.array(exported.predict(clips)) == right).mean() == result.after.accuracy.value


def _right(ids: np.ndarray) -> np.ndarray:
    """The class that a clip's number stands for."""
    return np.array([list(TONES)[int(name[-8:-5]) % 3] for name in ids])
