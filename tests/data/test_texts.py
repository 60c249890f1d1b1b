"""Texts and token ids: padding, tokenizers, data sets, views."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import expunge
from expunge.data import DataConfig, as_samples, from_dataset, from_texts, read, shared_inputs, view
from expunge.data.overlap import check_alike
from expunge.data.text_items import token_inputs
from expunge.errors import ConfigError, DataError
from oracles_text_models import bert, documents, tokenizer


def words(texts):
    """A tokenizer that is a function."""
    return {"input_ids": [[len(w) for w in text.split()] for text in texts]}


TEXTS = ["w1 w2 w3 w4", "w5", "w6 w7"]


def test_a_batch_is_padded_to_its_longest_text_as_the_tokenizer_pads():
    t = tokenizer()
    samples = from_texts(TEXTS, [0, 1, 0], tokenizer=t)
    expected = t(TEXTS, padding=True, return_tensors="pt")
    batch = samples.batch(np.arange(3))
    assert set(batch) == set(expected)
    for name, x in expected.items():
        assert_close(batch[name], x)
    assert samples.batch(np.array([1, 2]))["input_ids"].shape == (2, 4)


def test_padding_on_the_left_is_on_the_left():
    t = tokenizer(padding_side="left")
    expected = t(TEXTS, padding=True, return_tensors="pt")["attention_mask"]
    batch = from_texts(TEXTS, [0, 1, 0], tokenizer=t).batch(np.arange(3))
    assert_close(batch["attention_mask"], expected)


def test_long_texts_are_cut_and_pairs_are_joined():
    t = tokenizer()
    samples = from_texts(TEXTS, [0, 1, 0], tokenizer=t, length=4, pairs=["w9", "w9", "w9"])
    assert samples.batch(np.arange(3))["input_ids"].shape[1] == 4
    samples = from_texts(TEXTS, [0, 1, 0], tokenizer=t, pairs=["w9", "w9", "w9"])
    assert samples.batch(np.array([1]))["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]
    assert samples.inputs.text(1) == "w5\nw9"


def test_a_function_is_a_tokenizer():
    samples = from_texts(["a bb ccc", "d"], ["x", "y"], tokenizer=words, length=2)
    assert samples.batch(np.arange(2))["input_ids"].tolist() == [[1, 2], [1, 0]]
    assert samples.classes == ("x", "y")


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["a", None, 3], {}, DataError, "expected texts, got NoneType: rows 1, 2"),
        ("abc", {}, DataError, "expected a list of texts, got str"),
        (["a", " "], {}, DataError, r"texts that are empty: ids 1\n  fix: fill in or remove"),
        (["a", "b"], {"pairs": ["c", "d\ud83d"]}, DataError, r"half a character .*: ids 1\n"),
        (
            ["a", "b"],
            {"tokenizer": lambda t: {"x": [[1], []]}},
            DataError,
            "without a token: ids 1",
        ),
        ({"a": "b"}, {}, DataError, r"expected a list of texts, got dict\n.*texts.values"),
        (["a", "b"], {"labels": [0]}, DataError, "do not match"),
        (["a", "b"], {"pairs": ["c"]}, DataError, "2 texts and 1 pairs"),
        (["a", "b"], {"length": 0}, ConfigError, "length must be 1 or more"),
        (["a", "b"], {"tokenizer": lambda t: [1]}, DataError, "the tokenizer returned list"),
        (["a", b"b"], {}, DataError, r"got bytes: rows 1\n.*text.decode\(\)"),
        (["a", 3], {}, DataError, r"got int: rows 1\n.*str\(v\)"),
        ([("a", "b")], {}, DataError, r"got tuple: rows 0\n.*pairs=…"),
        (["a", "b"], {"tokenizer": None}, ConfigError, "is NoneType, expected a tokenizer"),
        (["a", "b"], {"tokenizer": "bert"}, ConfigError, r"is str.*\n.*AutoTokenizer"),
        (["a", "b"], {"tokenizer": str.split}, DataError, "fails on a list of texts: TypeError"),
        (["a", "b"], {"view": "crop"}, DataError, "view"),
        (["a", "b"], {"view": "token-dropout"}, DataError, "attention mask"),
    ],
)
def test_what_does_not_fit_is_refused(texts, options, error, message):
    settings = {"labels": [0, 1], "tokenizer": words} | options
    with pytest.raises(error, match=message):
        from_texts(texts, **settings)


def test_a_tokenizer_without_padding_token_is_an_error_with_a_way_out():
    t = tokenizer()
    t.pad_token = None
    with pytest.raises(ConfigError, match=r"no padding token\n.*tokenizer.pad_token ="):
        from_texts(TEXTS, [0, 1, 0], tokenizer=t)


@pytest.mark.parametrize("form", ["raw", "lists", "torch", "padded", "transform", "torch-dataset"])
def test_data_sets_of_the_hub_are_read_as_they_are(form):
    datasets = pytest.importorskip("datasets")
    t = tokenizer()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = datasets.Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1]}, features=features)
    padding = "max_length" if form == "padded" else False
    if form == "transform":
        data = data.with_transform(lambda rows: {**t(rows["text"]), "label": rows["label"]})
    elif form != "raw":
        data = data.map(lambda row: t(row["text"], padding=padding, max_length=9), batched=False)
    if form in ("torch", "padded"):
        data.set_format("torch", columns=["input_ids", "attention_mask", "label"])
    if form == "torch-dataset":
        data = torch.utils.data.Subset(data, [0, 1, 2])
    samples = from_dataset(data, tokenizer=t) if form == "raw" else as_samples(data)
    expected = from_texts(TEXTS, [1, 0, 1], tokenizer=t).batch(np.arange(3))
    batch = samples.batch(np.arange(3))
    assert samples.labels.tolist() == [1, 0, 1]
    assert samples.classes == ("no", "yes")
    for name, x in batch.items():
        assert_close(x, expected[name])
    with torch.no_grad():
        assert bert(2)(**batch).logits.shape == (3, 2)


def test_two_named_texts_are_a_pair():
    t, pairs = tokenizer(), [{"q": text, "a": "w9", "label": i % 2} for i, text in enumerate(TEXTS)]
    found = from_dataset(pairs, tokenizer=t, input=("q", "a"))
    expected = from_texts(TEXTS, [0, 1, 0], tokenizer=t, pairs=["w9"] * 3)
    assert found.inputs.fingerprint() == expected.inputs.fingerprint()
    assert found.inputs.text(0) == f"{TEXTS[0]}\nw9"
    with pytest.raises(DataError, match=": an int under 'n': expected a text, or two"):
        from_dataset([{**row, "n": 1} for row in pairs], tokenizer=t, input=("q", "n"))
    with pytest.raises(DataError, match=r"'label' is both input and label\n  fix: "):
        from_dataset(pairs, tokenizer=t, input=("q", "label"), label="label")


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_the_rows_of_a_frame_are_items(kind):
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    names = ["yes", "no", "yes"]
    topic = pd.Categorical(names, categories=["yes", "no"])
    frame = pd.DataFrame({"body": TEXTS, "id": [5, 3, 4], "topic": topic}, index=[9, 9, 1])
    frame = (
        frame if kind == "pandas" else pa.table({"body": TEXTS, "id": [5, 3, 4], "topic": names})
    )
    samples = from_dataset(frame, tokenizer=words, input="body", label="topic", id="id")
    assert [samples.inputs.text(i) for i in range(3)] == TEXTS
    assert samples.ids.tolist() == [5, 3, 4]
    assert [samples.classes[k] for k in samples.labels] == names
    # The codes that the caller's model was trained on; other frames state none, and are sorted.
    assert samples.classes == (("yes", "no") if kind == "pandas" else ("no", "yes"))
    column = frame["body"]
    assert from_texts(column, names, tokenizer=words).inputs.text(2) == TEXTS[2]
    rows = {"a": [0.5, 1], "b": [2, 3], "y": [0, 1]}
    numbers = from_dataset(pd.DataFrame(rows, index=[1, 1]), input=("a", "b"))
    assert_close(numbers.batch(np.arange(2)), torch.tensor([[0.5, 2], [1, 3]]))


def test_items_of_another_kind_are_named():
    one, two = torch.ones(1).long(), torch.ones(2).long()
    rows = [{"input_ids": one}, {"input_ids": one, "attention_mask": two}]
    with pytest.raises(DataError, match=r"items without token ids, or .* lengths: ids 1"):
        token_inputs(rows, None, np.arange(2), "here")
    with pytest.raises(DataError, match=r"items without a text under text, .*: ids 0, 1"):
        from_dataset([{"label": 0}, {"label": 1}], tokenizer=words)
    gaps = [{"x": text, "label": k % 2} for k, text in enumerate(["a", None, "b", None, ""])]
    with pytest.raises(
        DataError, match=r"items without a text under 'x': ids 1, 3, 4\n  fix: fill"
    ):
        from_dataset(gaps, tokenizer=words, input="x")
    items = [{"id": f"i{k}", "body": "a b", "topic": k} for k in range(2)]
    samples = from_dataset(items, tokenizer=words, input="body", label="topic", id="id")
    assert samples.ids.tolist() == ["i0", "i1"]
    for key in ("label", "input", "id"):
        named = {"input": "body", "label": "topic", "id": "id"} | {key: "none"}
        with pytest.raises(DataError, match="item 0: there is no 'none' in a dict"):
            from_dataset(items, tokenizer=words, **named)
    for settings in ({"label": 0}, {"input": 1, "label": 0}):
        samples = from_dataset([(0, "a"), (1, "b")], tokenizer=words, **settings)
        assert samples.labels.tolist() == [0, 1]
    for items in ([("a", 0), ("b", 1)], [(7, "a", 0), (8, "b", 1)], [("a", 0, 7), ("b", 1, 8)]):
        samples = from_dataset(items, tokenizer=words)
        assert samples.labels.tolist() == [0, 1]
        assert samples.ids.tolist() == ([0, 1] if len(items[0]) == 2 else [7, 8])


@pytest.mark.parametrize("source", ["", "csv", "jsonl", "parquet"])
def test_columns_of_texts_are_read_with_a_tokenizer(tmp_path, source):
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokenizer().save_pretrained(tmp_path / "tokens")
    rows = [{"text": t, "second": "w1", "label": c} for t, c in zip(TEXTS, "aba", strict=True)]
    path = tmp_path / "train.csv"
    if source == "parquet":
        pq.write_table(
            pa.table({k: pa.array([r[k] for r in rows], pa.string_view()) for k in rows[0]}), path
        )
    elif source == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text("text,second,label\n" + "\n".join(",".join(r.values()) for r in rows))
    config = DataConfig(
        "train.csv",
        source=source,
        input="text",
        pair="second",
        tokenizer="tokens",
        skip_rows=1,
        view="span-mask",
    )
    samples = read(config, folder=tmp_path)
    assert samples.classes == ("a", "b")
    assert samples.batch(np.array([0]))["input_ids"].tolist() == [[2, 9, 3, 5, 3]]
    assert samples.inputs.text(1) == "w6 w7\nw1"


def test_texts_without_a_tokenizer_are_an_error_that_says_so(tmp_path):
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "\n".join(f"one two three four {k},{k % 2}" for k in range(9))
    )
    with pytest.raises(DataError, match=r"holds texts, not file paths\n.*set tokenizer"):
        read(DataConfig("train.csv", input="text"), folder=tmp_path)
    with pytest.raises(DataError, match="no such tokenizer folder"):
        read(DataConfig("train.csv", input="text", tokenizer="none"), folder=tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="holds no tokenizer that can be read"):
        read(DataConfig("train.csv", input="text", tokenizer="none"), folder=tmp_path)


def test_the_same_text_is_found_in_both_sets_whatever_its_padding():
    texts, labels, _ = documents(40)
    t = tokenizer()
    train = from_texts(texts[:30], labels[:30], tokenizer=t, classes=["a", "b", "c"])
    other = from_texts(
        [*texts[28:40], "w1"], [*labels[28:40], 0], tokenizer=t, classes=["a", "b", "c"]
    )
    assert shared_inputs(train, other) == 2
    check_alike(train, other)
    assert train.fingerprint()["inputs"] != other.fingerprint()["inputs"]
    assert train.subset(np.array([3])).inputs.text(0) == texts[3]


@pytest.mark.parametrize("name", ["token-dropout", "span-mask"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_views_hide_some_tokens_but_neither_the_first_nor_the_last(name, side):
    t = tokenizer(padding_side=side)
    samples = from_texts([*TEXTS, " ".join(["w1"] * 50)], [0, 1, 0, 1], tokenizer=t)
    x = samples.batch(np.arange(4))
    before = x["attention_mask"].clone()
    draw = lambda seed: view(name)(x, torch.Generator().manual_seed(seed))["attention_mask"]  # noqa: E731
    seen = draw(0)
    assert_close(x["attention_mask"], before)
    assert_close(seen, draw(0))
    assert not torch.equal(seen, draw(1))
    assert (seen <= before).all()
    assert seen.dtype == before.dtype
    for row, mask in zip(seen, before, strict=True):
        ends = mask.nonzero()[[0, -1]].flatten()
        assert row[ends].tolist() == [1, 1]
    hidden = 1 - float(seen[3].sum() / before[3].sum())
    assert 0.03 < hidden < 0.32


def test_from_texts_is_public():
    assert expunge.from_texts is from_texts
