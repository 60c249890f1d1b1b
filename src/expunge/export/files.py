"""Files and Pillow images as the inputs of an exported model: what the manifest keeps for them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from expunge.data import Samples
from expunge.data.decoding import Decoding, decode_inputs
from expunge.data.paths import require_inside
from expunge.data.transforms import HubProcessor, load_transform
from expunge.errors import DataError, ModelError, RunError
from expunge.storage.atomic_files import wrap_io_errors

if TYPE_CHECKING:
    from PIL import Image

# A path or a Pillow image, or several.
Files: TypeAlias = "str | Path | Image.Image | Sequence[str | Path | Image.Image]"
PROCESSOR = "processor"  # the folder of a Hugging Face processor, in the exported folder


@dataclass(frozen=True)
class StoredDecoding:
    """How a file becomes a stored input; see `Decoding`.

    Parameters
    ----------
    kind
        What the files hold.
    mode, size
        Of images.
    seconds
        Of audio.
    transform, transform_arguments
        As in a spec; a folder is one in the exported folder.
    """

    kind: Literal["image", "audio"]
    mode: Literal["RGB", "L"] | None = None
    size: int | None = None
    seconds: float | None = None
    transform: str = ""
    transform_arguments: dict[str, Any] = field(default_factory=dict)


def store_decoding(samples: Samples, transform: str, folder: Path) -> StoredDecoding | None:
    """What the manifest keeps; a processor is copied into the folder.

    Parameters
    ----------
    samples
        Their decoding is kept, if there is one.
    transform
        The name of a transform that data sets given in Python were prepared with, as in a spec.
    folder
        Of the export.
    """
    decoding = samples.decoding
    if transform:
        decoding = Decoding("image", transform=load_transform(transform, folder=Path.cwd()))
    if decoding is None:
        return None
    made, name, arguments = decoding.transform, "", {}
    if made is not None:
        name, arguments = made.name, dict(made.arguments)
        if isinstance(made.function, HubProcessor):
            name = PROCESSOR
            with wrap_io_errors(folder):
                (folder / PROCESSOR).mkdir()
                for file in made.function.folder.glob("*.json"):
                    shutil.copyfile(file, folder / PROCESSOR / file.name)
    return StoredDecoding(
        decoding.kind, decoding.mode, decoding.size, decoding.seconds, name, arguments
    )


def load_decoding(
    stored: StoredDecoding | None, folder: Path, *, sample_rate: int | None
) -> Decoding | None:
    """The decoding of a manifest; modules in its folder can be named."""
    if stored is None:
        return None
    transform = None
    if stored.transform:
        if ":" not in stored.transform:
            try:
                require_inside(folder, stored.transform)
            except ValueError as error:
                raise RunError(
                    f"names a processor outside its folder: {stored.transform!r}",
                    where=str(folder),
                    fix="export the model again",
                ) from error
        try:
            transform = load_transform(
                stored.transform,
                stored.transform_arguments,
                folder=folder,
                sample_rate=sample_rate,
            )
        except ModelError as error:
            module = stored.transform.partition(":")[0].partition(".")[0]
            raise ModelError(
                error.what, where=error.where, fix=f"copy {module}.py into {folder}, or install it"
            ) from error
    return Decoding(stored.kind, stored.mode, stored.size, sample_rate, stored.seconds, transform)


def default_decoding(
    shape: tuple[int, ...], dtype: str, sample_rate: int | None
) -> Decoding | None:
    """The decoding of files for a model of plain pixels or clips; None for other inputs."""
    if dtype == "uint8" and len(shape) == 3 and shape[0] in (1, 3):
        return Decoding("image", mode="L" if shape[0] == 1 else "RGB")
    if dtype == "int16" and len(shape) == 1 and sample_rate:
        return Decoding("audio", sample_rate=sample_rate, seconds=shape[0] / sample_rate)
    return None


def is_file(x: object) -> bool:
    """Whether an input is a path or a Pillow image, or a list of these."""
    if isinstance(x, list | tuple):
        return len(x) > 0 and all(is_file(item) for item in x)
    if isinstance(x, str | Path):
        return True
    from PIL import Image

    return isinstance(x, Image.Image)


def read_files(x: Any, decoding: Decoding | None) -> Tensor:
    """The stored inputs of a path or a Pillow image, or of several.

    Raises
    ------
    DataError
        If a file cannot be used, or the export does not say how files become inputs.
    """
    if decoding is None:
        raise DataError(
            "this export does not say how files become inputs",
            where="input",
            fix="give arrays as they were stored, or export again with transform=…",
        )
    items: Sequence[Any] = x if isinstance(x, list | tuple) else [x]
    return decode_inputs(items, decoding, "input")
