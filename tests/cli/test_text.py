from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from expunge import cli
from expunge.cli import text as text_cli
from expunge.text.encoders import HuggingFaceEncoder
from expunge.text.filters import TextNoiseFilter
from oracles_text import news, stars, tiny_bert, tiny_tokenizer

pytest.importorskip("transformers")

STRAY = stars(1, seed=9, length=1)[0]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """``expunge text …`` in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_keep_freed_memory", lambda: None)

    def run(*arguments: object, terminal: bool = True) -> Said:
        wide = Console(stderr=True, width=200)
        for module in (cli, text_cli):
            monkeypatch.setattr(module, "err_console", wide)
        monkeypatch.setattr(
            text_cli,
            "out_console",
            Console(
                width=200, color_system="standard" if terminal else None, force_terminal=terminal
            ),
        )
        monkeypatch.setattr(sys, "argv", ["expunge", "text", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return Said(int(ended.value.code or 0), found.out, found.err)

    return run


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny_tokenizer([*news(40), *stars(20)])
    tiny_bert(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(encoder, tmp_path_factory) -> Path:
    """A filter fitted with that encoder."""
    made = HuggingFaceEncoder.from_pretrained(str(encoder))
    folder = tmp_path_factory.mktemp("filter")
    TextNoiseFilter.fit(news(40), stars(20), encoder=made).save(folder)
    return folder


def noisy(n: int) -> list[str]:
    return [f"{document} {STRAY}" for document in news(n, seed=5)]


def test_a_filter_is_fitted_on_files(call, encoder, fitted):
    Path("in").mkdir()
    for number, document in enumerate(news(40)):
        Path(f"in/{number:02}.txt").write_text(document, encoding="utf-8")
    Path("others.txt").write_text("\n\n".join(stars(20)), encoding="utf-8")
    said = call(
        "fit",
        "in",
        "--background",
        "others.txt",
        "--one-doc-per-line",
        "--encoder",
        encoder,
        "--out",
        "f",
    )
    assert said.code == 0, said.err
    assert "f: combined score, fitted to 40 documents and 20 of the background" in said.out
    Path("a.txt").write_text(noisy(1)[0], encoding="utf-8")
    here, there = (call("score", "a.txt", "--filter", name) for name in ("f", fitted))
    assert here.out == there.out


def test_a_text_file_is_cleaned_to_the_byte(call, fitted):
    document = "\r\n\r\n".join(news(2, seed=5))
    raw = f"{document}\r\n{STRAY}\r\n".encode()
    Path("a.txt").write_bytes(raw)
    said = call("clean", "a.txt", "--filter", fitted, "--out", "b.txt")
    assert said.code == 0, said.err
    assert Path("b.txt").read_bytes() == f"{document}\r\n".encode()
    assert "1 documents, 1 of 13 sentences removed; 0 documents are empty now" in said.err
    assert Path("a.txt").read_bytes() == raw


def test_a_mark_at_the_start_of_a_file_stays(call, fitted):
    text = "\ufeff" + noisy(1)[0]
    Path("a.txt").write_text(text, encoding="utf-8")
    call("clean", "a.txt", "--filter", fitted, "--out", "b.txt")
    assert Path("b.txt").read_text(encoding="utf-8") == "\ufeff" + news(1, seed=5)[0]
    Path("a.jsonl").write_text("\ufeff" + json.dumps({"document": "A b."}), encoding="utf-8")
    assert call("clean", "a.jsonl", "--filter", fitted).code == 0


def test_json_lines_keep_their_order_and_other_fields(call, fitted):
    records = [{"id": i, "body": text, "more": ["é"]} for i, text in enumerate(noisy(40))]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    said = call("clean", "a.jsonl", "--filter", fitted, "--column", "body", "--out", "b.jsonl")
    assert said.code == 0, said.err
    found = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    assert [r["id"] for r in found] == list(range(40))
    assert all(r["more"] == ["é"] for r in found)
    assert sum(STRAY not in r["body"] for r in found) > 35
    printed = call("clean", "a.jsonl", "--filter", fitted, "--column", "body")
    assert printed.out == Path("b.jsonl").read_text()


def test_parquet_keeps_its_schema(call, fitted):
    schema = pa.schema([("id", pa.int32()), ("document", pa.large_string())], metadata={"a": "b"})
    table = pa.table({"id": range(300), "document": noisy(300)}, schema=schema)
    pq.write_table(table, "a.parquet")
    said = call("clean", "a.parquet", "--filter", fitted, "--out", "b.parquet")
    assert said.code == 0, said.err
    found = pq.read_table("b.parquet")
    assert found.schema.equals(schema, check_metadata=True)
    assert found["id"].to_pylist() == list(range(300))
    assert not any(STRAY in d for d in found["document"].to_pylist()[:5])


def test_scores_have_offsets_into_the_text(call, fitted):
    Path("a.txt").write_text("\n".join(noisy(2)) + "\n\n", encoding="utf-8")
    said = call("score", "a.txt", "--filter", fitted, "--one-doc-per-line", "--tokens")
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [r["where"] for r in rows] == ["a.txt:1", "a.txt:2"]
    for row, text in zip(rows, noisy(2), strict=True):
        last = row["sentences"][-1]
        assert text[last["start"] : last["end"]] == STRAY
        assert last["is_noise"] == (last["score"] > row["threshold"]) is True
        token = row["tokens"][0]
        assert text[token["start"] : token["end"]] == "The"
    call("score", "a.txt", "--filter", fitted, "--one-doc-per-line", "--tokens", "--out", "s.jsonl")
    assert Path("s.jsonl").read_text() == said.out


def test_what_is_removed_is_shown_in_red(call, fitted):
    clean = news(1, seed=5)[0]
    Path("a.txt").write_bytes(f"\r\n\r\n{clean}\r\n{STRAY}\r\n".encode())
    said = call("clean", "a.txt", "--filter", fitted, "--show")
    assert f"\x1b[9;31m{STRAY}\x1b[0m" in said.out
    assert clean in said.out
    Path("a.txt").write_text("\x1b[2J = x(y)[0]", encoding="utf-8")
    assert "\x1b[2J" not in call("clean", "a.txt", "--filter", fitted, "--show").out


def test_without_a_terminal_what_is_removed_stands_between_marks(call, fitted):
    Path("a.txt").write_text(noisy(1)[0], encoding="utf-8")
    said = call("clean", "a.txt", "--filter", fitted, "--show", terminal=False)
    assert f"{news(1, seed=5)[0]} [-{STRAY}-]" in said.out


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "not JSON"),
        (b'["a list"]', "expected an object, got list"),
        (b'{"id": 1}', "no text in 'document'"),
        (b'{"document": 3}', "no text in 'document' but int"),
        (b'{"document": "\xff\xfe"}', "not UTF-8"),
        (b'{"document": "\\ud800"}', "lone surrogates"),
        (b"\x00\x01\x02", "binary data"),
    ],
)
def test_a_bad_record_is_named_by_its_line_and_skipped_if_asked(call, fitted, line, reason):
    good = json.dumps({"document": noisy(1)[0]}).encode()
    Path("a.jsonl").write_bytes(good + b"\n" + line + b"\n\n" + good + b"\n")
    said = call("clean", "a.jsonl", "--filter", fitted, "--out", "b.jsonl")
    assert said.code == 1
    assert "a.jsonl:2" in said.err
    assert reason in said.err
    assert not Path("b.jsonl").exists()
    assert not list(Path().glob(".*.part"))
    said = call("clean", "a.jsonl", "--filter", fitted, "--out", "b.jsonl", "--on-error", "skip")
    assert said.code == 0
    assert "skipped: a.jsonl:2" in said.err
    assert len(Path("b.jsonl").read_text().splitlines()) == 2


def test_records_without_the_field_name_those_that_they_have(call, fitted):
    Path("a.jsonl").write_text('{"text": "So it is.", "id": 1}\n', encoding="utf-8")
    said = call("clean", "a.jsonl", "--filter", fitted)
    assert said.code == 1
    assert "no text in 'document'\n" in said.err
    assert "fix: --column with one of: text, id; or correct the record" in said.err
    assert call("clean", "a.jsonl", "--filter", fitted, "--column", "text").code == 0
    assert "--column" not in call("clean", "a.jsonl", "--filter", fitted, "--column", "id").err


def test_empty_documents_and_all_noise_stay_in_their_place(call, fitted):
    records = [{"document": t} for t in ("", noisy(1)[0], "x = f(y)[0]", " ")]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    said = call("clean", "a.jsonl", "--filter", fitted)
    texts = [json.loads(line)["document"] for line in said.out.splitlines()]
    assert texts == ["", news(1, seed=5)[0], "", " "]
    assert "1 documents are empty now" in said.err


def test_what_cannot_be_done_says_why(call, fitted, encoder):
    Path("a.txt").write_text(noisy(1)[0], encoding="utf-8")
    Path("others.txt").write_text("\n".join(stars(20)), encoding="utf-8")
    Path("in").mkdir()
    Path("in/a.txt").write_text("A b.", encoding="utf-8")
    pq.write_table(pa.table({"text": ["a"]}), "a.parquet")
    Path("b.parquet").write_bytes(b"no")
    Path("a.pdf").write_bytes(b"%PDF")
    for arguments, message in {
        ("clean", "a.txt", "--filter", "nowhere"): "filter.safetensors: cannot be read",
        ("clean", "no.txt", "--filter", fitted): "there are no documents",
        ("clean", "a.pdf", "--filter", fitted): "unsupported file type '.pdf'; expected .txt",
        ("clean", "a.parquet", "--filter", fitted): "no column 'document'",
        ("clean", "b.parquet", "--filter", fitted): "not a Parquet file",
        ("clean", "a.txt", "--filter", fitted, "--out", "b.jsonl"): "is written in its own format",
        ("clean", "a.txt", "--filter", fitted, "--out", "a.txt"): "would overwrite the input",
        ("clean", "a.txt", "--filter", fitted, "--out", "no/b.txt"): "the folder does not exist",
        ("clean", "in", "--filter", fitted, "--out", "b.txt"): "one by one",
        ("clean", "a.txt", "--filter", fitted, "--quantile", "2"): "quantile must lie in",
        ("fit", "a.txt", "--background", "others.txt", "--out", "g", "--encoder", str(encoder)): (
            "expected 10 in-domain documents or more, got 1"
        ),
        ("fit", "in", "--background", "others.txt", "--out", "g", "--encoder", "in"): (
            "cannot be loaded"
        ),
    }.items():
        said = call(*arguments)
        assert said.code == 1, arguments
        assert message in said.err, said.err
    assert call("score", "a.txt", "--filter", fitted, "--out", "b.txt").code == 2
