"""CIFAR-10, CIFAR-10N and Speech Commands as their authors publish them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from expunge._core.rng import derive
from expunge.errors import DataError
from expunge.storage.reading import reading

CIFAR_FOLDER, CIFAR_BATCH = "cifar-10-batches-py", "data_batch_1"
CIFAR_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
# CIFAR-10N (arXiv 2110.12088): its label sets by the kind of noise.
HUMAN_FILE = "CIFAR-10_human.pt"
HUMAN_LABELS = {"human_random1": "random_label1", "human_aggregate": "aggre_label"}
HUMAN_SOURCE = "http://noisylabels.com"
SPEECH_FOLDER, SPEECH_LIST = "speech_commands_v0.02", "testing_list.txt"
# Ten words and as many other ones as the average word has. The most clips of a split.
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN = "_unknown_"
MAX_CLIPS = {"train": 12_000, "test": 4_000}


def cifar_folder(path: Path) -> Path:
    """The folder with the five batches: this one, or ``cifar-10-batches-py`` in it.

    Raises
    ------
    DataError
        If neither is there; it says where to get the data.
    """
    for folder in (path, path / CIFAR_FOLDER):
        if (folder / CIFAR_BATCH).is_file():
            return folder
    raise DataError(
        f"expected train.parquet, {CIFAR_BATCH}, a folder {CIFAR_FOLDER}, or Speech Commands' "
        f"{SPEECH_LIST}; none of them is there",
        where=str(path),
        fix=f"unpack {CIFAR_SOURCE} there, or name another folder with --data; `expunge bench "
        "repair --data digits` needs none",
    )


def human_labels_file(path: Path, noise: str) -> str:
    """``FILE:COLUMN`` of CIFAR-10N, whose file lies beside the batches or in their parent.

    Raises
    ------
    DataError
        If there is no such file, or the noise is of no label set in it.
    """
    if noise not in HUMAN_LABELS:
        raise DataError(
            f"the published files hold no labels '{noise}'",
            where=str(path),
            fix=f"choose another --noise, or a train.parquet with a column '{noise}'",
        )
    folder = cifar_folder(path)
    for file in (path / HUMAN_FILE, folder / HUMAN_FILE, folder.parent / HUMAN_FILE):
        if file.is_file():
            return f"{file}:{HUMAN_LABELS[noise]}"
    raise DataError(
        f"no labels '{noise}': there is no {HUMAN_FILE}",
        where=str(path),
        fix=f"get CIFAR-10N from {HUMAN_SOURCE} and put {HUMAN_FILE} there",
    )


def speech_folder(path: Path) -> Path | None:
    """The folder of Speech Commands: this one, or ``speech_commands_v0.02`` in it; or None."""
    for folder in (path, path / SPEECH_FOLDER):
        if (folder / SPEECH_LIST).is_file():
            return folder
    return None


def speaker_of(clip: str) -> str:
    """The speaker in a file's name: ``yes/0a7c2a8d_nohash_0.wav`` → ``0a7c2a8d``."""
    return Path(clip).name.partition("_nohash_")[0]


@contextmanager
def speech_manifest(folder: Path, split: Literal["train", "test"]) -> Iterator[Path]:
    """A CSV file of the clips: id and path, label. It is gone afterwards.

    Test clips are those of ``testing_list.txt``; all others are training clips. Files of other
    words are ``_unknown_``. The choice of clips depends on the names of the files alone.
    """
    clips = _chosen(folder, split)
    with TemporaryDirectory() as temporary:
        manifest = Path(temporary) / f"{split}.csv"
        with manifest.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "label"))
            rows.writerows(clips)
        yield manifest


def _chosen(folder: Path, split: Literal["train", "test"]) -> list[tuple[str, str]]:
    """The path and the label of each clip."""
    with reading(folder):
        tested = set((folder / SPEECH_LIST).read_text(encoding="utf-8").split())
        found = sorted(p.relative_to(folder).as_posix() for p in folder.glob("[!_.]*/*.wav"))
    clips = [clip for clip in found if (clip in tested) == (split == "test")]
    known = [clip for clip in clips if _word(clip) in WORDS]
    others = [clip for clip in clips if _word(clip) not in WORDS]
    if not known:
        raise DataError(
            f"no {split} clips of {WORDS[0]}, {WORDS[1]}, … are there",
            where=str(folder),
            fix="unpack speech_commands_v0.02.tar.gz again",
        )
    others = sorted(others, key=_rank)[: max(1, len(known) // len(WORDS))]
    by_speaker = sorted(known + others, key=lambda clip: (_rank(speaker_of(clip)), clip))
    chosen = by_speaker[: MAX_CLIPS[split]]
    return [(clip, _word(clip) if _word(clip) in WORDS else UNKNOWN) for clip in sorted(chosen)]


def _word(clip: str) -> str:
    return clip.partition("/")[0]


def _rank(name: str) -> int:
    """A number that a name has by itself, for an order like a random one."""
    return derive(0, name)
