"""What a folder that a suite is given holds: images or recorded words."""

from __future__ import annotations

from pathlib import Path

from expunge.data.parquet import column_names
from expunge.errors import DataError
from expunge_bench.cifar import Cifar
from expunge_bench.speech import Speech

# The columns that tell the one from the other.
IMAGES, SPEECH = ("image", "label"), ("id", "audio", "label", "speaker")


def field_of(folder: Path) -> Cifar | Speech:
    """CIFAR-10 or Speech Commands, by the columns of ``train.parquet``.

    A folder without that file is taken for the original ``cifar-10-batches-py``. Raises DataError
    for columns that are neither's.
    """
    file = folder / "train.parquet"
    if not file.is_file():
        return Cifar(folder)
    columns = column_names(file)
    if set(columns) >= set(SPEECH):
        return Speech(folder)
    if set(columns) >= set(IMAGES):
        return Cifar(folder)
    raise DataError(
        f"has the columns {', '.join(columns)}: neither images ({', '.join(IMAGES)}) nor speech "
        f"({', '.join(SPEECH)})",
        where=str(file),
        fix="name a folder with CIFAR-10 or with Speech Commands",
    )
