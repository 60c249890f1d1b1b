"""Find out which benchmark data a folder holds: images or recorded words."""

from __future__ import annotations

from pathlib import Path

from expunge.data.parquet import column_names
from expunge.errors import DataError
from expunge_bench.cifar import Cifar
from expunge_bench.original_files import speech_folder
from expunge_bench.speech import Speech

IMAGE_COLUMNS, SPEECH_COLUMNS = ("image", "label"), ("id", "audio", "label", "speaker")


def dataset_in_folder(folder: Path) -> Cifar | Speech:
    """CIFAR-10 or Speech Commands, by the columns of ``train.parquet``.

    Without that file the folder is read as the original files: Speech Commands if it has
    ``testing_list.txt``, otherwise CIFAR-10.

    Raises
    ------
    DataError
        If the columns are those of neither.
    """
    file = folder / "train.parquet"
    if not file.is_file():
        return Speech(folder) if speech_folder(folder) else Cifar(folder)
    columns = column_names(file)
    if set(columns) >= set(SPEECH_COLUMNS):
        return Speech(folder)
    if set(columns) >= set(IMAGE_COLUMNS):
        return Cifar(folder)
    raise DataError(
        f"expected the columns of images ({', '.join(IMAGE_COLUMNS)}) or of speech "
        f"({', '.join(SPEECH_COLUMNS)}), got {', '.join(columns)}",
        where=str(file),
        fix="name a folder with CIFAR-10 or with Speech Commands",
    )
