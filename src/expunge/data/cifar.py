"""CIFAR-10's own files and CIFAR-10N's human labels, read without arbitrary unpickling."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expunge.data.inputs import TensorInputs
from expunge.data.paths import require_file, require_folder
from expunge.data.rows import Rows
from expunge.errors import DataError, did_you_mean, type_with_article
from expunge.storage.reading import READ_ERRORS

if TYPE_CHECKING:
    from expunge.data.data_config import DataConfig

BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def cifar_rows(path: Path, config: DataConfig) -> Rows:
    """Read the original ``cifar-10-batches-py`` folder; ids are rows in torchvision's order."""
    require_folder(path)
    if config.split not in BATCHES:
        raise DataError(
            f"CIFAR-10 has no split '{config.split}'",
            where=str(path),
            fix="set split to train or test; skip_rows and max_rows divide the training batches",
        )
    pixels, labels = [], []
    for name in BATCHES[config.split]:
        x, y = _batch(path / name)
        pixels.append(x)
        labels.append(y)
    x = np.concatenate(pixels).reshape(-1, 3, 32, 32)
    return Rows(
        ids=np.arange(len(x)),
        labels=np.concatenate(labels),
        inputs=TensorInputs(torch.from_numpy(x)),
        class_names=CLASSES,
    )


def human_labels(path: Path, column: str) -> np.ndarray:
    """Read a label set of CIFAR-10N's ``CIFAR-10_human.pt`` (arXiv 2110.12088), by position.

    Parameters
    ----------
    path
        The file.
    column
        The label set: ``random_label1`` or ``worse_label``, for example.

    Returns
    -------
    np.ndarray
        ``int64[n]``.

    Raises
    ------
    DataError
        If the file contains more than NumPy arrays and plain types, or has no such label set.
    """
    require_file(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_array_globals()):
        warnings.simplefilter("ignore")  # of an archive that is not one of ours
        try:
            table = torch.load(path, map_location="cpu", weights_only=True)
        except READ_ERRORS as error:
            # Torch's own text explains how to load the file unsafely: keep only the reason.
            reason = re.search(r"Unsupported \w+: \w* ?[\w.]+", str(error))
            raise DataError(
                "not an archive of plain arrays "
                f"({reason.group() if reason else type(error).__name__})",
                where=str(path),
                fix="use the published CIFAR-10_human.pt, unchanged",
            ) from error
    if not isinstance(table, dict):
        raise DataError(f"holds {type_with_article(table)}, expected a dict", where=str(path))
    if column not in table:
        names = [str(name) for name in table]
        raise DataError(
            f"no labels called '{column}'", where=str(path), fix=did_you_mean(column, names)
        )
    values = table[column]
    values = values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"'{column}' is {values.dtype} of shape {values.shape}, expected integers [n]",
            where=str(path),
        )
    return values.astype(np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Read NumPy arrays and plain types; DataError for any other name, which is not imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _allowed()[f"{module}.{name}"]
        except KeyError:
            raise DataError(
                f"the file asks to run {module}.{name}, which no data file needs: refused",
                fix="use the published files, unchanged",
            ) from None


def _allowed() -> dict[str, Any]:
    """The names in a pickled array, as NumPy 1 and NumPy 2 write them."""
    reconstruct = np.empty(0).__reduce__()[0]
    return {
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy._core.multiarray._reconstruct": reconstruct,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }


def _array_globals() -> list[Any]:
    kinds = {type(np.dtype(kind)) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
    # From NumPy 1.25 on, the class of a dtype differs from np.dtype, the name in the file.
    return [*((value, name) for name, value in _allowed().items()), *kinds]


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``uint8[n, 3072]`` and ``int64[n]`` of one batch file."""
    require_file(path)
    where = str(path)
    try:
        # Only the names in _allowed can be reached.
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except DataError as error:
        raise DataError(error.what, where=where, fix=error.fix) from error
    except READ_ERRORS as error:
        raise DataError(
            f"not a CIFAR-10 batch, or a damaged one ({error or type(error).__name__})",
            where=where,
            fix="unpack cifar-10-python.tar.gz again",
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"holds {type_with_article(content)}, expected a dict", where=where)
    # Python 2 wrote the keys as bytes.
    fields = {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in content.items()}
    data, labels = fields.get("data"), fields.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise DataError("'data' is not uint8 of shape [n, 3072]", where=where)
    if not isinstance(labels, list) or not all(type(v) is int for v in labels):
        raise DataError("'labels' is not a list of integers", where=where)
    if len(labels) != len(data):
        raise DataError(f"{len(data)} images and {len(labels)} labels do not match", where=where)
    return data, np.array(labels, dtype=np.int64)
