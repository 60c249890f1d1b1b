"""Arrays, lists, data frames and columns of them become the same samples."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from PIL import Image
from torch import Tensor

from expunge.data import as_samples, check_alike, from_arrays, from_dataset
from expunge.errors import DataError
from expunge.reporting.media import rows_for

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])
EXPECTED = from_arrays(X, Y)
NESTED = torch.nested.nested_tensor([torch.ones(2)] * 6, layout=torch.jagged)


class Stored:
    """An array as h5py and Zarr have it: NumPy can read it, and it is no sequence."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: Any) -> Any:
        return self.values[at]


class Group:
    """A group of arrays as Zarr has it."""

    arrays: ClassVar = {"x": Stored(X), "y": Stored(Y)}

    def array_keys(self) -> Iterator[str]:
        return iter(self.arrays)

    __iter__ = array_keys

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, name: str) -> Stored:
        return self.arrays[name]


class Module:
    """As a data module of Lightning."""

    def train_dataloader(self) -> None:
        pass


@pytest.mark.parametrize(
    "x",
    [
        Stored(X),
        pd.DataFrame(X),
        pd.DataFrame(X.astype(np.float64), columns=list("abcd")),
        pd.DataFrame(X).astype("Float64"),
        list(X),
        X.tolist(),
        list(torch.from_numpy(X)),
        pd.Series(list(X)),
        tuple(X),
    ],
)
def test_inputs_of_every_kind_are_the_same(x: Any) -> None:
    samples = as_samples((x, Y))
    found = samples.batch(np.arange(6))
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, torch.from_numpy(X))
    assert samples.labels.tolist() == Y.tolist()


@pytest.mark.parametrize(
    "y",
    [
        Y[:, None],
        torch.from_numpy(Y)[:, None],
        pd.Series(Y),
        pd.Series(Y, dtype="Int64"),
        pd.DataFrame({"label": Y}),
        pd.Index(Y),
        pa.array(Y),
        pa.array([str(k) for k in Y]),
        pa.array([str(k) for k in Y]).dictionary_encode(),
        pa.chunked_array([[str(k) for k in Y]]),
        [str(k).encode() for k in Y],
        Y.astype(np.float32),
        Y.astype(np.uint8),
        [[int(k)] for k in Y],
        [torch.tensor(k) for k in Y],
        [str(k) for k in Y],
        Stored(Y),
        Stored(np.array([str(k).encode() for k in Y], dtype=object)),
        Y.astype(np.float16),
        pd.Series(Y).astype("category"),
        pd.Categorical(Y),
        tuple(Y),
    ],
)
def test_labels_of_every_kind_are_the_same(y: Any) -> None:
    samples = as_samples((X, y))
    assert samples.labels.tolist() == Y.tolist()
    assert samples.classes == ("0", "1", "2")


def test_a_categorical_column_states_its_classes() -> None:
    kinds = pd.CategoricalDtype(["small", "large", "huge"])
    column = pd.Series(["large", "small"] * 3, dtype=kinds)
    for y in (column, pd.Categorical(column), pd.DataFrame({"size": column})):
        samples = from_arrays(X, y)
        assert samples.classes == ("small", "large", "huge")
        assert samples.labels.tolist() == [1, 0] * 3
    assert from_arrays(X, column, classes=["huge", "large", "small"]).labels.tolist() == [1, 2] * 3


def test_one_column_of_vectors_is_an_embedding() -> None:
    frame = pd.DataFrame({"embedding": list(X)})
    assert torch.equal(from_arrays(frame, Y).inputs.batch(np.arange(6)), torch.from_numpy(X))


def test_masks_beside_other_inputs_may_be_truth_values() -> None:
    mask = X > 0
    arrays = from_arrays({"x": X, "mask": mask}, Y)
    items = from_dataset([({"x": X[i], "mask": mask[i]}, int(Y[i])) for i in range(6)])
    for samples in (arrays, items):
        assert torch.equal(samples.batch(np.arange(6))["mask"], torch.from_numpy(mask))
    assert (
        arrays.fingerprint()["inputs"]
        == from_arrays({"x": X, "mask": mask}, Y).fingerprint()["inputs"]
    )
    for alone in ((mask, Y), [(mask[i], int(Y[i])) for i in range(6)]):
        with pytest.raises(DataError, match=r"dtype bool.*\n.*astype\('float32'\)"):
            as_samples(alone)


def test_a_tuple_of_arrays_is_named_by_the_arguments_of_the_model() -> None:
    with pytest.raises(DataError, match=r"item 0: the input is a tuple of 2 arrays\n.*\({'a'"):
        as_samples([((X[i], X[i]), int(Y[i])) for i in range(6)])


@pytest.mark.parametrize("kind", [uuid.UUID, Decimal, Path])
def test_ids_of_other_types_are_given_as_texts(kind: type) -> None:
    ids = [kind(int=i) if kind is uuid.UUID else kind(str(i)) for i in range(6)]
    with pytest.raises(DataError, match=r"\w+ in ids, expected .*\n.*\[str\(v\) for v in …\]"):
        from_arrays(X, Y, ids=ids)
    assert len(from_arrays(X, Y, ids=[str(v) for v in ids])) == 6


def test_ids_are_one_value_a_sample() -> None:
    assert from_arrays(X, Y, ids=np.arange(6)[:, None]).ids.tolist() == list(range(6))
    with pytest.raises(DataError, match=r"ids must be one value .*\n.*join the parts"):
        from_arrays(X, Y, ids=[(i, 0) for i in range(6)])


def test_pictures_in_a_list_are_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    samples = from_arrays([Image.fromarray(p) for p in pixels], [0, 1, 0, 1])
    expected = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
    assert torch.equal(samples.inputs.batch(np.arange(4)), expected)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, pd.Series([0, 1, None, 0, 1, 2], dtype="Int64"), "labels are NaN or infinite: ids 2"),
        (X, pd.Series(["a", "b", None, "a", "b", "c"]), r"missing values .* in labels: ids 2"),
        (
            X,
            pd.Series(["a", None] * 3, dtype="category"),
            r"missing values .* in labels: ids 1, 3, 5",
        ),
        (X, np.eye(3)[Y], r"for one-hot labels and probabilities: y.argmax\(1\)"),
        (X, np.ones((6, 3)), r"score one at a time, .* its logit alone, model\(x\)\[:, k\]"),
        (X, Y[None], r"fix: y\[0\]"),
        (X, [[0, 1], [0]] * 3, "labels must be one value a sample"),
        (X, 5, "got a tuple of ndarray, int"),
        (X, Group(), r"labels must be .* not Group\n.*its arrays \(x, y\): labels\['x'\]"),
        (Group(), Y, r"x must be .* not Group\n.*its arrays \(x, y\): x\['x'\]"),
        (X, ["a", "b", " "] * 2, r"missing values .* in labels: ids 2, 5"),
        (X, np.array(["a", "b", ""] * 2), r"missing values .* in labels: ids 2, 5"),
        (X, [-1, 1] * 3, r"name the classes: classes=\['-1', '1'\]"),
        (NESTED, Y, r"to_padded_tensor\(0\)"),
        (pd.DataFrame({"a": [1.0] * 6, "town": list("uvwxyz")}), Y, "hold no numbers: town"),
        (pd.DataFrame({"day": pd.date_range("2020", periods=6)}), Y, "hold no numbers: day"),
        (pd.DataFrame({"t": pd.to_timedelta(range(6), "h")}), Y, "hold no numbers: t"),
        (pd.DataFrame({"z": [1j] * 6}), Y, "hold no numbers: z"),
        (pd.DataFrame(X, columns=list("uvuw")), Y, "columns of the same name: u"),
        (pd.DataFrame(X, index=range(6)), pd.Series(Y, index=range(6, 12)), "different indices"),
        (pd.DataFrame(), Y, "no samples"),
        (["some text"] * 6, Y, "item 0: the input is a str.*\n.*expunge.from_texts reads texts"),
        ([b"GIF"] * 6, Y, "item 0: the input is a bytes.*\n.*PIL.Image.open"),
        ([{"bytes": b"", "path": None}] * 6, Y, r"item 0: .*\n.*cast_column\(.*Image\(\)\)"),
        ([X[0], X[1, :2]] * 3, Y, r"items 1, 3, 5\n.*one shape"),
        (map(list, X), Y, r"not map\n.*list\(x\)"),
        (scipy.sparse.csr_array(X), Y, r"not csr_array\n.*x\.toarray\(\)"),
        (X, {*Y.tolist()}, r"labels must be .* not set\n.*list\(labels\)"),
        (X, dict(enumerate(Y)), r"labels must be .* not dict\n.*list\(labels\.values\(\)\)"),
        (X, [{0, 1}] * 6, "set in labels, .*\n.*several labels are not supported"),
        (X, Y + 0.5, "got fractions; divide numbers into classes"),
        (X, Y * 0, r"1 class: a classifier needs two or more; .* name them all: classes="),
        ({}, Y, "a dictionary without arrays"),
        ({"a": X, "b": X[:3]}, Y, "different lengths"),
        ([], [], "no samples"),
    ],
)
def test_what_cannot_be_converted_is_named(x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_samples((x, y))


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        ("path.csv", r"expunge\.data\.read"),
        (pd.DataFrame(X), r"\(data\[columns of the inputs\], data\[column of the labels\]\)"),
        ({"x": X, "mask": X}, "x may be a dictionary of arrays"),
        (X, r"give the labels too: \(x, y\)"),
        (iter([(X[0], 0)]), r"list\(…\) makes items of an iterable"),
        ((X, Y, Y), r"give a pair of inputs and labels, \(x, y\)"),
        (((X[0], 0),) * 8, r"list\(…\) makes a list of the items"),
        ({i: (X[i], 0) for i in range(6)}, r"list\(data.values\(\)\)"),
        ({"x": Stored(X), "y": Stored(Y)}, r"a pair of its arrays \(x, y\): \(data\['x'\]"),
        (Group(), r"a pair of its arrays \(x, y\): \(data\['x'\], data\['y'\]\)"),
        (Module(), r"data\.setup\('fit'\), then give data\.train_dataloader\(\)"),
        (torch.nn.Sequential(torch.nn.Linear(4, 3)), "a network: it comes first"),
        (None, "expunge.from_arrays"),
    ],
)
def test_what_is_no_data_is_refused_with_what_to_give(data: Any, fix: str) -> None:
    with pytest.raises(DataError, match=f"(?s)expected Samples, a pair of arrays.*{fix}"):
        as_samples(data)


def test_mean_and_std_must_be_in_the_units_of_the_inputs() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    from_arrays(pixels, Y, mean=mean, std=std)
    with pytest.raises(
        DataError, match=r"divide both by 255: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225"
    ):
        from_arrays(pixels, Y, mean=[255 * m for m in mean], std=[255 * s for s in std])
    raw = pixels.astype(np.float32)
    from_arrays(raw, Y, mean=[255 * m for m in mean], std=[255 * s for s in std])
    with pytest.raises(DataError, match="do not fit the inputs: these have mean 12"):
        from_arrays(raw, Y, mean=mean, std=std)
    with pytest.raises(DataError, match="do not fit the inputs"):
        from_arrays(raw / 255, Y, mean=[255 * m for m in mean], std=[255 * s for s in std])
    clips = (pixels.reshape(6, -1).astype(np.int16) - 128) * 100
    with pytest.raises(DataError, match="divide both by 32768"):
        from_arrays(clips, Y, mean=[0.0], std=[8000.0])


class Drawn:
    """A transform of one input that draws from the global generators."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.rand(1) + np.random.rand()  # noqa: NPY002


def test_a_view_may_be_a_function_or_a_transform_of_one_input() -> None:
    def noise(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.rand(x.shape, generator=generator)

    x = torch.from_numpy(X)
    for function in (noise, Drawn()):
        view = from_arrays(X, Y, view=function).view
        assert view is not None
        state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        first, again, other = (view(x, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(state[0], torch.get_rng_state())
        assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    shifts = from_arrays(X, Y, view=Drawn()).view(x, torch.Generator()) - x  # type: ignore[misc]
    assert shifts.std(dim=1).max() < 1e-5  # one shift for each input,
    assert shifts.mean(dim=1).std() > 0.1  # and not the same for all


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (lambda x, g: x[:, :2], r"the view makes \(1, 2\)"),
        (lambda x: None, "the view fails: TypeError"),
        (lambda x, g: 1 / 0, r"the view fails: ZeroDivisionError.*\n.*a view is a function"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(view: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(X, Y, view=view)


def test_masks_sparse_matrices_and_bytes_are_not_misread() -> None:
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(DataError, match=r"masked array.*\n  fix: fill the masked values"):
        from_arrays(np.ma.masked_array(x, x > 0), y)
    with pytest.raises(DataError, match="labels are masked: ids 1, 3"):
        from_arrays(x, np.ma.masked_array(y, y == 1))
    with pytest.raises(DataError, match=r"fix: x\.to_dense\(\)"):
        from_arrays(torch.from_numpy(x).to_sparse(), y)
    with pytest.raises(DataError, match=r"not csr_matrix\n  fix: x\.toarray\(\)"):
        from_arrays(scipy.sparse.csr_matrix(x), y)
    assert from_arrays(x, np.array([b"no", b"yes"])[y]).classes == ("no", "yes")
    table = pa.table({"a": x[:, 0], "b": x[:, 1]})
    assert from_arrays(table, y).batch(np.arange(2)).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_floats_by_name_are_of_32_bits_as_a_single_input() -> None:
    x = {"a": np.eye(4), "b": np.eye(4, dtype=np.float16), "c": np.arange(4).reshape(4, 1)}
    batch = from_arrays(x, [0, 1, 0, 1]).batch(np.arange(2))
    assert [batch[k].dtype for k in "abc"] == [torch.float32, torch.float32, torch.int64]


def test_columns_of_numbers_that_are_named_make_a_vector() -> None:
    rows = [{"width": 1.5, "count": 2, "kind": "a"}, {"width": 0.5, "count": 1, "kind": "b"}]
    samples = from_dataset(rows, input=("count", "width"), label="kind")
    assert samples.batch(np.arange(2)).tolist() == [[2.0, 1.5], [1.0, 0.5]]


def test_columns_of_a_table_keep_their_names_and_another_order_is_refused() -> None:
    frame = pd.DataFrame(X, columns=list("uvwx"))
    train = from_arrays(frame, Y)
    rows = frame.assign(kind=Y)
    assert train.columns == ("u", "v", "w", "x")
    assert from_dataset(rows, input=("w", "u"), label="kind").columns == ("w", "u")
    assert from_arrays(X, Y).columns == ()
    assert rows_for(train, [0]).names == ("u", "v", "w", "x")
    check_alike(train, from_arrays(frame, Y))
    check_alike(train, from_arrays(X, Y))
    with pytest.raises(DataError, match="columns are u, v, w, x in data, x, w, v, u here"):
        check_alike(train, from_arrays(frame[list("xwvu")], Y))
