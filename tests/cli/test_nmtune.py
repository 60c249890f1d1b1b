from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge import cli
from nmtune.test_heads import planted

NAMES = np.array(["fig", "apple", "pear"])


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """``expunge nmtune …`` in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_keep_freed_memory", lambda: None)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["expunge", "nmtune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return Said(int(ended.value.code or 0), found.out, found.err)

    return run


def parquet(path: str, *, seed: int = 0, labels: bool = True) -> np.ndarray:
    x, y = planted(seed=seed)
    columns = {"key": np.arange(len(x)), "embedding": pa.array(list(x))}
    pq.write_table(pa.table(columns | ({"kind": NAMES[y]} if labels else {})), path)
    return NAMES[y]


QUICK = ("--epochs", 8, "--learning-rate", 0.01, "--learning-rate", 0.003)


def test_a_head_is_fitted_on_parquet_and_applied_to_another(call):
    parquet("a.parquet")
    said = call("fit", "a.parquet", "--label", "kind", "--out", "head", *QUICK, "--json")
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    assert facts["samples"] == 120
    assert facts["paper"]["accuracy_held_out"] > 0.9
    assert facts["linear"]["learning_rate"] in (0.01, 0.003)
    assert set(facts["paper"]["sve"]) == {"features", "transformed"}
    assert "<svg" in Path("head/report.html").read_text()
    truth = parquet("b.parquet", seed=1, labels=False)
    said = call("apply", "b.parquet", "--head", "head", "--out", "c.parquet", "--transformed")
    assert said.code == 0, said.err
    assert "c.parquet: 120 predictions" in said.out
    table = pq.read_table("c.parquet")
    columns = ["key", "embedding", "prediction", "probability", "transformed"]
    assert table.column_names == columns
    assert (np.array(table["prediction"].to_pylist()) == truth).mean() > 0.9
    assert all(1 / 3 <= p <= 1 for p in table["probability"].to_pylist())
    assert {len(z) for z in table["transformed"].to_pylist()} == {12}


def test_arrays_work_as_well(call):
    x, y = planted()
    np.savez("a.npz", x=x, y=y)
    np.save("b.npy", x)
    said = call("fit", "a.npz", "--out", "head", "--preset", "linear", *QUICK)
    assert said.code == 0, said.err
    assert "linear: learning rate 0.01, " in said.out
    for name in ("a.npz", "b.npy"):
        said = call("apply", name, "--head", "head", "--out", "c.npz", "--json")
        assert sum(json.loads(said.out)["predicted"].values()) == 120
        with np.load("c.npz") as found:
            assert (found["prediction"].astype(int) == y).mean() > 0.9
        said = call("apply", name, "--head", "head", "--out", "c.parquet", "--transformed")
        assert said.code == 0, said.err
        table = pq.read_table("c.parquet")
        assert table.column_names == ["prediction", "probability", "transformed"]
        assert (np.array(table["prediction"].to_pylist()).astype(int) == y).mean() > 0.9


def test_the_spectrum_of_embeddings_needs_no_labels(call):
    np.save("a.npy", np.eye(4))
    said = call("spectrum", "a.npy", "--out", "page.html")
    assert said.out == "SVE 1.386, LSVR 1.386\n"
    assert "<svg" in Path("page.html").read_text()
    facts = json.loads(call("spectrum", "a.npy", "--json").out)
    assert facts["values"] == [1, 1, 1, 1]
    assert facts["sve"] == pytest.approx(np.log(4))


def test_what_cannot_be_read_or_written_is_said(call):
    parquet("a.parquet")
    call("fit", "a.parquet", "--label", "kind", "--out", "head", *QUICK)
    np.savez("no.npz", features=np.eye(3))
    Path("a.txt").write_text("1 2 3")
    Path("bad.npz").write_bytes(b"no")
    for arguments, words in (
        (("fit", "a.parquet", "--label", "knd", "--out", "h"), "did you mean 'kind'?"),
        (("fit", "a.parquet", "--column", "key", "--label", "kind", "--out", "h"), "column 'key'"),
        (
            ("apply", "a.parquet", "--head", "h", "--out", "o.parquet"),
            "safetensors: cannot be read",
        ),
        (("apply", "a.parquet", "--head", "head", "--out", "o.csv"), ".parquet or .npz"),
        (("apply", "a.parquet", "--column", "kind", "--head", "head", "--out", "o.npz"), "lists"),
        (("spectrum", "no.npz"), "no array is called 'x'"),
        (("spectrum", "bad.npz"), "not an .npz file of plain arrays"),
        (("spectrum", "a.txt"), ".parquet, .npz, .npy"),
        (("spectrum", "absent.npy"), "absent.npy: no such file"),
        (("spectrum", "absent.npy"), "check the spelling; in a spec, relative paths start at"),
    ):
        said = call(*arguments)
        assert said.code == 1, arguments
        assert words in said.err, said.err
    call("apply", "a.parquet", "--head", "head", "--out", "b.parquet")
    said = call("apply", "b.parquet", "--head", "head", "--out", "c.parquet")
    assert "the column 'prediction' exists already" in said.err


def test_no_input_and_no_page_of_others_is_overwritten(call):
    parquet("a.parquet")
    call("fit", "a.parquet", "--label", "kind", "--out", "head", *QUICK)
    before = Path("a.parquet").read_bytes()
    Path("link.parquet").symlink_to("a.parquet")
    for out in ("a.parquet", "./a.parquet", "link.parquet"):
        said = call("apply", "a.parquet", "--head", "head", "--out", out)
        assert said.code == 1
        assert "--out would overwrite the input" in said.err
    assert "overwrite the input" in call("spectrum", "a.parquet", "--out", "a.parquet").err
    assert Path("a.parquet").read_bytes() == before
    Path("other").mkdir()
    Path("other/report.html").write_text("<html>mine</html>")
    said = call("fit", "a.parquet", "--label", "kind", "--out", "other", *QUICK)
    assert said.code == 1
    assert "report.html: is a page of another program" in said.err
    assert [p.name for p in Path("other").iterdir()] == ["report.html"]
    again = call("fit", "a.parquet", "--label", "kind", "--out", "head", *QUICK)
    assert again.code == 0, again.err


def test_what_cannot_be_written_leaves_what_was_there(call, monkeypatch):
    parquet("a.parquet")
    call("fit", "a.parquet", "--label", "kind", "--out", "head", *QUICK)
    call("apply", "a.parquet", "--head", "head", "--out", "b.parquet")
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("expunge.storage.atomic_files.os.replace", full)
    for command in (
        ("apply", "a.parquet", "--head", "head", "--out", "b.parquet"),
        ("apply", "a.parquet", "--head", "head", "--out", "c.npz"),
        ("spectrum", "a.parquet", "--out", "page.html"),
        ("fit", "a.parquet", "--label", "kind", "--out", "head", *QUICK),
    ):
        said = call(*command)
        assert said.code == 1
        assert "cannot be written: No space left on device" in said.err
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before
