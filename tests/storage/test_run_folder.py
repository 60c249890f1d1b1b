from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from expunge.errors import RunError
from expunge.records import NeuronRanking, PrunePlan, Scores
from expunge.storage import serialization
from expunge.storage.artefacts import Artefact
from expunge.storage.json_files import seal
from expunge.storage.run_folder import check_run_folder, open_run
from expunge.storage.weights import save_weights
from oracles_digits import contents
from oracles_results import make_partition

HEADER = {"recipe": "default", "seed": 0, "train": {"labels": "aa", "inputs": "bb"}}
ARTEFACT = Artefact(
    metadata={"note": [1, 2.5, "x"]},
    tables={"rows": pa.table({"id": [1, 2]})},
    tensors={"w": torch.arange(6.0).view(2, 3)},
)


class Compute:
    """A stage that counts how often it was asked."""

    def __init__(self, artefact: Artefact = ARTEFACT) -> None:
        self.calls, self.artefact = 0, artefact

    def __call__(self) -> Artefact:
        self.calls += 1
        return self.artefact


def made(folder: Path, key: dict | None = None) -> None:
    """A run folder with one finished stage."""
    with open_run(folder, HEADER) as run:
        run.stage("1-score", key or {"seed": 0}, Compute())


def same(a: Artefact, b: Artefact) -> bool:
    return (
        a.metadata == b.metadata
        and a.tables == b.tables
        and all(torch.equal(a.tensors[k], b.tensors[k]) for k in {*a.tensors, *b.tensors})
    )


# ------------------------------------------------------------------------------ stages


def test_a_finished_stage_is_read_and_not_computed_again(tmp_path):
    made(tmp_path / "run")
    compute = Compute()
    with open_run(tmp_path / "run", HEADER) as run:
        found = run.stage("1-score", {"seed": 0}, compute)
    assert compute.calls == 0
    assert same(found, ARTEFACT)


def test_a_stage_is_computed_once_in_one_run(tmp_path):
    compute = Compute()
    with open_run(tmp_path / "run", HEADER) as run:
        first = run.stage("1-score", {"seed": 0}, compute)
        assert run.stage("1-score", {"seed": 0}, compute) is first
    assert compute.calls == 1


def test_without_a_folder_every_run_computes_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compute = Compute()
    for _ in range(2):
        with open_run(None, HEADER) as run:
            run.stage("1-score", {"seed": 0}, compute)
            run.write("result.json", "{}")
            run.log("end")
            assert run.checkpoint("1-score", {}) is None
    assert compute.calls == 2
    assert list(tmp_path.iterdir()) == []


def test_a_stage_with_another_key_is_refused_and_every_differing_field_named(tmp_path):
    made(tmp_path / "run", {"seed": 0, "settings": {"views": 8, "attribution_layer": ""}})
    before = contents(tmp_path)
    key = {"seed": 1, "settings": {"views": 4, "attribution_layer": ""}}
    with (
        open_run(tmp_path / "run", HEADER) as run,
        pytest.raises(RunError, match=r"seed: was 0, is 1") as e,
    ):
        run.stage("1-score", key, Compute())
    assert "settings.views: was 8, is 4" in str(e.value)
    assert "layer" not in str(e.value)
    assert contents(tmp_path) == before


def test_tuples_and_lists_in_a_key_are_the_same(tmp_path):
    made(tmp_path / "run", {"layers": ("a", "b")})
    compute = Compute()
    with open_run(tmp_path / "run", HEADER) as run:
        run.stage("1-score", {"layers": ["a", "b"]}, compute)
    assert compute.calls == 0


def test_a_failure_inside_compute_leaves_no_stage(tmp_path):
    def fail() -> Artefact:
        raise ValueError("no")

    with open_run(tmp_path / "run", HEADER) as run, pytest.raises(ValueError, match="no"):
        run.stage("1-score", {}, fail)
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {".lock", "run.json"}
    made(tmp_path / "run")


@pytest.mark.parametrize(
    "what",
    [
        "expunge.storage.artefacts.pq.write_table",
        "expunge.storage.artefacts.save_file",
        "expunge.storage.artefacts.Path.write_text",
        "expunge.storage.atomic_files.os.replace",
        "expunge.storage.atomic_files.Path.mkdir",
    ],
)
def test_a_failure_inside_writing_leaves_no_half_stage(tmp_path, monkeypatch, what):
    def full(*args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made(tmp_path / "run")
    before = contents(tmp_path)
    with open_run(tmp_path / "run", HEADER) as run:
        with monkeypatch.context() as patch:
            patch.setattr(what, full)
            with pytest.raises(RunError, match="No space left"):
                run.stage("2-partition", {}, Compute())
        assert contents(tmp_path) == before
        assert not (tmp_path / "run" / "2-partition").exists()
        compute = Compute()
        run.keys.clear()
        run.stage("2-partition", {}, compute)
    assert compute.calls == 1


def test_a_stage_folder_without_its_note_is_made_anew(tmp_path):
    made(tmp_path / "run")
    (tmp_path / "run" / "1-score" / "stage.json").unlink()
    compute = Compute()
    with open_run(tmp_path / "run", HEADER) as run:
        assert same(run.stage("1-score", {"seed": 0}, compute), ARTEFACT)
    assert compute.calls == 1
    assert (tmp_path / "run" / "1-score" / "stage.json").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("stage.json", b"{"),
        ("stage.json", b"[]"),
        ("stage.json", b"\xff\xfe"),
        ("tensors.safetensors", b"short"),
        ("rows.parquet", b"PAR1 and nothing else"),
    ],
)
def test_a_damaged_stage_is_one_of_our_errors(tmp_path, file, content):
    made(tmp_path / "run")
    (tmp_path / "run" / "1-score" / file).write_bytes(content)
    with open_run(tmp_path / "run", HEADER) as run, pytest.raises(RunError, match="1-score"):
        run.stage("1-score", {"seed": 0}, Compute())


def test_a_single_flipped_bit_in_a_stage_is_never_read_as_another_result(tmp_path):
    made(tmp_path / "run")
    found = {"refused": 0}
    for file in sorted((tmp_path / "run" / "1-score").iterdir()):
        whole = file.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 40)):
            changed = bytearray(whole)
            changed[position] ^= 1 << position % 8
            file.write_bytes(changed)
            with open_run(tmp_path / "run", HEADER) as run:
                try:
                    artefact = run.stage("1-score", {"seed": 0}, Compute())
                except RunError:
                    found["refused"] += 1
                else:  # white space of the JSON
                    assert same(artefact, ARTEFACT), (file.name, position)
        file.write_bytes(whole)
    assert found["refused"] > 80


def test_a_tampered_stage_with_matching_digests_is_one_of_our_errors(tmp_path):
    made(tmp_path / "run")
    note = tmp_path / "run" / "1-score" / "stage.json"
    facts = json.loads(note.read_text())
    del facts["digest"]
    for change in ({"seconds": "x"}, {"files": 3}, {"files": {"../a": "b"}}, {"key": None}):
        note.write_text(json.dumps(seal({**facts, **change})))
        with open_run(tmp_path / "run", HEADER) as run, pytest.raises(RunError, match="1-score"):
            run.stage("1-score", {"seed": 0}, Compute())


def test_a_run_folder_that_is_removed_in_mid_run_is_an_error(tmp_path):
    with open_run(tmp_path / "run", HEADER) as run:
        run.stage("1-score", {}, Compute())
        checkpoint = run.checkpoint("5-tune", {})
        shutil.rmtree(tmp_path / "run")
        for write in (
            lambda: run.stage("2-partition", {}, Compute()),
            lambda: run.write("result.json", "{}"),
            lambda: checkpoint.save(1, {"w": torch.zeros(1)}),
            lambda: run.log("end"),
        ):
            with pytest.raises(RunError, match=r"removed while|cannot be written"):
                write()
    assert not (tmp_path / "run").exists()


def test_the_state_of_a_stage_that_is_done_is_cleared_away(tmp_path):
    made(tmp_path / "run")
    (tmp_path / "run" / "1-score.partial").mkdir()
    made(tmp_path / "run")
    assert not (tmp_path / "run" / "1-score.partial").exists()


# ------------------------------------------------------------------------------ the folder


def test_another_header_is_refused_and_every_differing_field_named(tmp_path):
    made(tmp_path / "run")
    before = contents(tmp_path)
    header = {**HEADER, "seed": 3, "train": {"labels": "zz", "inputs": "bb"}}
    with (
        pytest.raises(RunError, match=r"seed: was 0, is 3") as e,
        open_run(tmp_path / "run", header),
    ):
        pytest.fail("the folder must not open")
    assert 'train.labels: was "aa", is "zz"' in str(e.value)
    assert "inputs:" not in str(e.value)
    assert "another folder: out=…; or discard what is there: overwrite=True" in str(e.value)
    assert contents(tmp_path) == before


def test_a_run_that_failed_before_its_first_result_leaves_the_folder_free(tmp_path):
    with open_run(tmp_path, HEADER) as run:
        run.log("start")
    with open_run(tmp_path, {**HEADER, "seed": 3}):
        assert {file.name for file in tmp_path.iterdir()} == {".lock", "run.json"}
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 3


def test_a_bit_that_flipped_where_nothing_was_set_is_put_right(tmp_path):
    """An option that is null is as good as one that is not there."""
    header = {**HEADER, "tune": {"max_minutes": None}}
    with open_run(tmp_path / "run", header):
        pass
    before = contents(tmp_path)
    note = tmp_path / "run" / "run.json"
    note.write_text(note.read_text().replace("max_minutes", "ma8_minutes"))
    with open_run(tmp_path / "run", header):
        assert contents(tmp_path) == before


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_run_file_is_one_of_our_errors(tmp_path, content):
    made(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json"), open_run(tmp_path / "run", HEADER):
        pytest.fail("the folder must not open")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("stranger", ["thesis.tex", "1-score", "baselines", ".git"])
def test_a_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path, stranger, overwrite):
    (tmp_path / stranger).write_text("mine")
    with (
        pytest.raises(RunError, match=f"holds other files: {stranger}"),
        open_run(tmp_path, HEADER, overwrite=overwrite),
    ):
        pytest.fail("the folder must not open")
    assert (tmp_path / stranger).read_text() == "mine"
    assert not (tmp_path / "run.json").exists()


def test_overwrite_discards_what_a_run_made_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    made(folder)
    ours = ["result.json", "report.md", "report.html", "model.safetensors", "partition.parquet"]
    theirs = ["notes.md", "2024-results.csv", ".gitignore", "controls.txt", "model.py"]
    for name in [*ours, *theirs]:
        (folder / name).write_text(name)
    for name in ("5-tune.partial", "baselines", "4-edit"):
        (folder / name).mkdir()
    compute = Compute()
    with open_run(folder, {**HEADER, "seed": 9}, overwrite=True) as run:
        assert {p.name for p in folder.iterdir()} == {*theirs, "run.json", ".lock"}
        run.stage("1-score", {"seed": 9}, compute)
    assert compute.calls == 1
    assert all((folder / name).read_text() == name for name in theirs)
    assert json.loads((folder / "run.json").read_text())["seed"] == 9


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_json_of_another_program_is_no_run_of_ours(tmp_path, overwrite):
    (tmp_path / "run.json").write_text('{"tool": "other", "train": 1}')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("x")
    before = contents(tmp_path)
    with (
        pytest.raises(RunError, match=r"its run\.json is of another program"),
        open_run(tmp_path, HEADER, overwrite=overwrite),
    ):
        pass
    assert before.items() <= contents(tmp_path).items()


def test_overwrite_does_not_follow_links_out_of_the_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("mine")
    made(tmp_path / "run")
    (tmp_path / "run" / "baselines").symlink_to(tmp_path / "data")
    with open_run(tmp_path / "run", HEADER, overwrite=True):
        assert not (tmp_path / "run" / "baselines").exists()
    assert (tmp_path / "data" / "x").read_text() == "mine"


def test_overwrite_works_on_a_training_too(tmp_path):
    for overwrite in (False, True):
        compute = Compute()
        with open_run(tmp_path, HEADER, overwrite=overwrite) as run:
            run.stage("model", {}, compute)
        assert compute.calls == 1


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match="not a folder"), open_run(tmp_path / "run", HEADER):
        pytest.fail("the folder must not open")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_second_user_of_an_open_folder_is_refused(tmp_path):
    with open_run(tmp_path, HEADER) as run:
        with (
            pytest.raises(RunError, match="another process works in this run folder"),
            open_run(tmp_path, HEADER),
        ):
            pytest.fail("the folder must not open")
        run.stage("1-score", {"seed": 0}, Compute())
    made(tmp_path)


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_uses_is_refused(tmp_path):
    made(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(RunError, match="another process works in this run folder"),
            open_run(tmp_path, HEADER),
        ):
            pytest.fail("the folder must not open")
        other.stdin.close()
    with open_run(tmp_path, HEADER) as run:
        assert run.folder == tmp_path


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    folder = tmp_path / "run"
    made(folder)
    (folder / ".partial-abc").mkdir()
    (folder / ".partial-abc" / "rows.parquet").write_text("half")
    (folder / ".partial-run.json").write_text("half")
    made(folder)
    assert {p.name for p in folder.iterdir()} == {".lock", "run.json", "1-score"}


def test_a_folder_whose_making_was_killed_can_be_used(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".partial-run.json").write_text("{")
    made(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["recipe"] == "default"


def test_a_folder_is_refused_before_a_model_is_trained_in_it(tmp_path):
    check_run_folder(tmp_path / "new")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files: thesis\.tex"):
        check_run_folder(tmp_path)
    made(tmp_path / "run")
    with pytest.raises(RunError, match="was not trained in it"):
        check_run_folder(tmp_path / "run")
    check_run_folder(tmp_path / "run", overwrite=True)
    (tmp_path / "run" / "0-train").mkdir()
    check_run_folder(tmp_path / "run")


@pytest.mark.parametrize("call", ["pathlib.Path.mkdir", "os.replace", "os.open"])
def test_a_disk_that_cannot_be_written_is_one_of_our_errors(tmp_path, monkeypatch, call):
    (tmp_path / "mine").write_text("mine")

    def forbidden(*args: object, **settings: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(call, forbidden)
        with (
            pytest.raises(RunError, match=r"cannot be written: Read-only file system\n  fix: free"),
            open_run(tmp_path / "run", HEADER),
        ):
            pytest.fail("the folder must not open")
    assert (tmp_path / "mine").read_text() == "mine"
    made(tmp_path / "run")


FULL = """
import resource, signal, sys
import torch
from expunge.errors import RunError
from expunge.storage.artefacts import Artefact
from expunge.storage.run_folder import open_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
big = {"w": torch.zeros(100_000)}
with open_run(sys.argv[1], {}) as run:
    for write in (
        lambda: run.stage("1-score", {}, lambda: Artefact(tensors=big)),
        lambda: run.checkpoint("5-tune", {}).save(1, big),
    ):
        try:
            write()
        except RunError as error:
            print(error)
"""


def test_tensors_that_the_disk_has_no_room_for_are_one_of_our_errors(tmp_path):
    """A limit on the size of files stands for a full disk; safetensors has an error of its own."""
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count("cannot be written") == 2
    assert not (tmp_path / "run" / "1-score").exists()


def test_a_file_of_the_run_appears_whole_or_not_at_all(tmp_path):
    def half(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_run(tmp_path, HEADER) as run:
        run.write("result.json", "first")
        with pytest.raises(RunError, match=r"result\.json: cannot be written: No space"):
            run.write("result.json", half)
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "run.json", "result.json"}
    assert (tmp_path / "result.json").read_text() == "first"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_others_can_read_the_files_of_a_run(tmp_path):
    former = os.umask(0o022)
    try:
        made(tmp_path / "run")
        save_weights(torch.nn.Linear(2, 3), tmp_path / "run" / "model.safetensors")
    finally:
        os.umask(former)
    files = [path for path in (tmp_path / "run").rglob("*") if path.suffix]
    assert {path.name for path in files} > {"tensors.safetensors", "model.safetensors"}
    assert {path.name for path in files if path.stat().st_mode & 0o777 != 0o644} == set()


def test_the_log_is_one_object_a_line(tmp_path):
    for seed in (0, 1):
        with open_run(tmp_path, HEADER) as run:
            run.log("start", seed=seed)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["seed"]) for line in lines] == [("start", 0), ("start", 1)]


# ------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_gives_back_the_epoch_and_the_tensors(tmp_path):
    tensors = {"model.w": torch.randn(3, generator=torch.Generator().manual_seed(0))}
    with open_run(tmp_path, HEADER) as run:
        run.checkpoint("5-tune", {"seed": 0}).save(2, tensors)
    with open_run(tmp_path, HEADER) as run:
        epoch, found = run.checkpoint("5-tune", {"seed": 0}).load()
        assert run.checkpoint("5-tune", {"seed": 1}).load() is None
    assert epoch == 2
    assert torch.equal(found["model.w"], tensors["model.w"])


def test_a_checkpoint_is_gone_when_its_stage_is_done_and_its_seconds_count(tmp_path):
    with open_run(tmp_path, HEADER) as run:
        run.checkpoint("5-tune", {}).save(2, {"w": torch.zeros(1)})
        file = tmp_path / "5-tune.partial" / "epoch.safetensors"
        assert file.exists()

        def compute() -> Artefact:
            checkpoint = run.checkpoint("5-tune", {})
            assert checkpoint.load()[0] == 2
            checkpoint.seconds_before += 100
            return Artefact()

        run.stage("5-tune", {}, compute)
        assert run.seconds["5-tune"] > 100
    assert not (tmp_path / "5-tune.partial").exists()


def test_a_damaged_checkpoint_is_one_of_our_errors(tmp_path):
    with open_run(tmp_path, HEADER) as run:
        checkpoint = run.checkpoint("5-tune", {})
        checkpoint.save(1, {"w": torch.zeros(4)})
        (tmp_path / "5-tune.partial" / "epoch.safetensors").write_bytes(b"half")
        with pytest.raises(RunError, match=r"epoch\.safetensors"):
            checkpoint.load()


# ------------------------------------------------------------------------------ records


def again(folder: Path, artefact: Artefact) -> Artefact:
    """Through the disk."""
    with open_run(folder, HEADER) as run:
        run.stage("1-score", {}, lambda: artefact)
    with open_run(folder, HEADER) as run:
        return run.stage("1-score", {}, Compute())


IDS = {"integers": np.array([7, -3, 2**40]), "strings": np.array(["a/b", "é", ""])}


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_scores_come_back_bit_for_bit(tmp_path, ids):
    rng = np.random.default_rng(0)
    values = {"loss": rng.normal(size=3), "tiny": np.array([5e-324, -0.0, 1 / 3])}
    probs = rng.dirichlet(np.ones(4), 3)
    scores = Scores(ids, np.array([0, 3, 1]), values, {"loss": "label", "tiny": "input"}, probs)
    found = serialization.load_scores(again(tmp_path, serialization.store_scores(scores)))
    for name in ("ids", "labels", "class_probs"):
        assert equal(getattr(found, name), getattr(scores, name)), name
    assert list(found.values) == list(values)
    assert all(found.values[k].tobytes() == scores.values[k].tobytes() for k in values)
    assert found.kinds == scores.kinds


@pytest.mark.parametrize("ids", ["integers", "strings"])
def test_a_partition_comes_back_bit_for_bit(tmp_path, ids):
    split = make_partition(n=30)
    if ids == "strings":
        split = make_partition(n=30, ids=np.array([f"id{i}" for i in range(30)]))
    found = serialization.load_partition(again(tmp_path, serialization.store_partition(split)))
    for name in ("ids", "labels", "p_noisy", "p_label_fault", "p_input_fault"):
        assert equal(getattr(found, name), getattr(split, name)), name
    for name in ("suggested_label", "suggested_probability"):
        assert equal(getattr(found, name), getattr(split, name)), name
    assert (found.threshold, found.noise_rate) == (split.threshold, split.noise_rate)
    assert found.fits == split.fits
    assert list(found.evidence) == list(split.evidence)
    assert all(equal(found.evidence[k], split.evidence[k]) for k in split.evidence)


def test_a_ranking_comes_back_bit_for_bit_with_its_missing_q_values(tmp_path):
    ranking = NeuronRanking(
        layer=np.array(["a", "b.c", "a"]),
        unit=np.array([0, 5, 1]),
        effect=np.array([0.1, 0.1, -0.3]),
        stderr=np.array([np.nan, 0.2, 1 / 3]),
        q_value=np.array([np.nan, np.nan, 0.04]),
        groups={"a": "a", "b.c": "a"},
        explained={"a": 0.25},
    )
    found = serialization.load_ranking(again(tmp_path, serialization.store_ranking(ranking)))
    for name in ("layer", "unit", "effect", "stderr", "q_value"):
        assert equal(getattr(found, name), getattr(ranking, name)), name
    assert np.isnan(found.q_value).sum() == 2
    assert (found.groups, found.explained) == (ranking.groups, ranking.explained)


def test_a_plan_comes_back_as_it_was(tmp_path):
    plan = PrunePlan({"b": (0, 4), "a": (2,)}, requested=5, reasons=("cap of 'b'",))
    assert serialization.load_plan(again(tmp_path, serialization.store_plan(plan))) == plan
