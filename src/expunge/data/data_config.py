"""The settings of one data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from expunge.data.audio import SAMPLE_RATES
from expunge.errors import ConfigError, raise_all, range_problems

MAX_SECONDS = 3600  # of a clip
MAX_WORKERS = 1024


@dataclass(frozen=True)
class LabelFile:
    """A column of a second file, joined by id.

    Parameters
    ----------
    path
        A Parquet, CSV or JSONL file; or CIFAR-10N's ``CIFAR-10_human.pt``, whose columns
        (``random_label1``, for example) are joined by position.
    column
        The column with the values.
    id
        The column with the ids.

    Examples
    --------
    >>> LabelFile("labels.csv", column="human").id
    'id'
    """

    path: str
    column: str
    id: str = "id"


@dataclass(frozen=True)
class DataConfig:
    """The settings of one data set, as in a spec file; `read` reads it.

    Parameters
    ----------
    path
        The file or folder. ``${NAME}`` and ``${NAME:-default}`` are taken from the environment.
        Parquet and tar files may be many: a folder, a clone from the Hub, or a pattern such as
        ``data/train-*.parquet`` or ``{000..009}.tar``.
    source
        ``"parquet"``, ``"webdataset"`` (tar files), ``"csv"``, ``"jsonl"``, ``"folder"``,
        ``"manifest"`` (a CSV or JSONL file), ``"table"``, ``"arrays"`` or ``"cifar10"``; empty: the
        path decides.
    input, label, id
        The names of the columns. Without ``id`` the ids are row numbers. ``input`` of a table:
        several columns, separated by commas. Of tar files: extensions, see `webdataset_rows`.
    labels
        Labels of a second file, used instead of the column ``label``.
    corrections
        Labels of a second file for some of the ids; the other samples keep theirs.
    external_probs
        Class probabilities of other models by name, each a column of lists of ``c`` numbers in a
        Parquet file, joined by id. See `Samples`.
    trusted
        Whether each sample is known to be right: a truth column of a Parquet file, joined by id.
    root
        The folder that the paths of a manifest start at and lie in; by default the manifest's own.
    classes
        The class names, in the order of the indices.
    mean, std
        One number a channel, or one for all, in units of the scaled input; ``std`` above 0.
    size
        Resize images to ``size × size`` pixels, 1 or more. Without it all must have one size.
    mode
        Convert images to ``"RGB"`` or ``"L"`` (grey). Without it all must have one of these modes.
    sample_rate
        Resample audio to this rate in Hz, 1,000 to 384,000. Without it clips of another rate than
        most are skipped.
    seconds
        Cut or pad audio to this length, up to 3,600. Without it all clips must have one length.
    transform
        Preprocessing of every input: ``"package.module:object"`` (a function or a torchvision
        transform, called with the Pillow image, the clip or the stored tensor), or the folder of a
        Hugging Face processor. It takes images in RGB unless ``mode`` is given.
    transform_arguments
        If given, or if the object is a class, the object is called with them to make the transform.
    view
        A random view (augmentation): a name, see `expunge.data.view`, or
        ``"package.module:function"``.
    tokenizer
        The folder of a Hugging Face tokenizer: the input column holds texts. A model that a spec
        reads from a folder has its tokenizer there.
    pair
        The column of the second text, for models of pairs of texts.
    length
        The largest number of tokens of a text, 1 or more; longer texts are cut. Without it the
        tokenizer's own limit. Batches are padded to their longest text.
    skip_rows
        Skip this many rows at the start, 0 or more.
    max_rows
        Read at most this many rows, 1 or more.
    split
        ``"train"``, ``"validation"`` or ``"test"``: of a folder whose files are named after splits,
        and of the CIFAR-10 folder. In a spec, the validation set has ``"test"`` by default.
    workers
        The number of processes that decode images and clips, 0 or more. By default one a core if
        they do not fit into memory, else none. They do not change the result.

    Raises
    ------
    ConfigError
        With all values that are out of range.

    Examples
    --------
    >>> DataConfig("train.parquet", max_rows=1000).view
    'none'
    >>> DataConfig("train.parquet", max_rows=0, split="all")
    Traceback (most recent call last):
    expunge.errors.ConfigError: data: 2 problems
      1. max_rows must be 1 or more, not 0
      2. split must be 'train', 'validation' or 'test', not 'all'
    """

    path: str
    source: str = ""
    input: str = "image"
    label: str = "label"
    id: str | None = None
    labels: LabelFile | None = None
    corrections: LabelFile | None = None
    external_probs: dict[str, LabelFile] = field(default_factory=dict)
    trusted: LabelFile | None = None
    root: str = ""
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int | None = None
    mode: Literal["RGB", "L"] | None = None
    sample_rate: int | None = None
    seconds: float | None = None
    transform: str = ""
    transform_arguments: dict[str, Any] = field(default_factory=dict)
    view: str = "none"
    tokenizer: str = ""
    pair: str | None = None
    length: int | None = None
    skip_rows: int = 0
    max_rows: int | None = None
    split: Literal["train", "validation", "test"] = "train"
    workers: int | None = None

    def __post_init__(self) -> None:
        low, high = SAMPLE_RATES
        problems = range_problems(
            {
                "size": (self.size, "[1, inf)"),
                "max_rows": (self.max_rows, "[1, inf)"),
                "skip_rows": (self.skip_rows, "[0, inf)"),
                "sample_rate": (self.sample_rate, f"[{low}, {high}]"),
                "seconds": (self.seconds, f"(0, {MAX_SECONDS}]"),
                "length": (self.length, "[1, inf)"),
                "workers": (self.workers, f"[0, {MAX_WORKERS}]"),
                "std": (min(self.std, default=None), "(0, inf)"),
            }
        )
        if self.mode not in (None, "RGB", "L"):
            problems.append(f"mode must be 'RGB' or 'L', not '{self.mode}'")
        if self.split not in ("train", "validation", "test"):
            problems.append(f"split must be 'train', 'validation' or 'test', not '{self.split}'")
        inputs = [*map(str.strip, self.input.split(",")), self.pair]
        if self.labels is None and self.label in inputs:
            problems.append(f"'{self.label}' is both input and label")
        if len(self.mean) != len(self.std):
            problems.append(
                f"mean and std need as many numbers, not {len(self.mean)} and {len(self.std)}"
            )
        raise_all(ConfigError, problems, where="data")
