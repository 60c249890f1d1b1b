"""Find out which benchmark data a folder holds: images, recorded words or news articles."""

from __future__ import annotations

from pathlib import Path

from expunge.data.parquet import column_names
from expunge.errors import DataError
from expunge_bench.cifar import Cifar
from expunge_bench.news import News
from expunge_bench.original_files import speech_folder
from expunge_bench.speech import Speech

IMAGE_COLUMNS, SPEECH_COLUMNS = ("image", "label"), ("id", "audio", "label", "speaker")
NEWS_COLUMNS = ("document", "category")


def dataset_in_folder(folder: Path) -> Cifar | Speech | News:
    """CIFAR-10, Speech Commands or BBC news, by the columns of ``train.parquet``.

    Without that file the folder is read as the original files: Speech Commands if it has
    ``testing_list.txt``, otherwise CIFAR-10.

    Raises
    ------
    DataError
        If the columns are those of none.
    """
    file = folder / "train.parquet"
    if not file.is_file():
        return Speech(folder) if speech_folder(folder) else Cifar(folder)
    columns = column_names(file)
    if set(columns) >= set(SPEECH_COLUMNS):
        return Speech(folder)
    if set(columns) >= set(IMAGE_COLUMNS):
        return Cifar(folder)
    if set(columns) >= set(NEWS_COLUMNS):
        return News(folder)
    raise DataError(
        f"expected the columns of images ({', '.join(IMAGE_COLUMNS)}), of speech "
        f"({', '.join(SPEECH_COLUMNS)}) or of news ({', '.join(NEWS_COLUMNS)}), "
        f"got {', '.join(columns)}",
        where=str(file),
        fix="name a folder with CIFAR-10, Speech Commands or BBC news",
    )
