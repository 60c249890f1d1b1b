"""A user's own preprocessing of one input: a function, a torchvision transform, a Hub processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from expunge._core.imports import describe_error, import_named
from expunge.data.conversion import to_numpy
from expunge.data.paths import require_folder, resolve_path
from expunge.errors import USER_ERRORS, ConfigError, DataError, extra_required, type_with_article
from expunge.storage.hashing import content_of
from expunge.storage.json_files import read_json

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# What processors of Hugging Face call the input of the model.
OUTPUT_KEYS = ("pixel_values", "input_values", "input_features")


def has_processor(folder: Path) -> bool:
    """Whether a folder holds an image processor or a feature extractor."""
    return any((folder / name).is_file() for name in PROCESSOR_FILES)


class TransformFailed(Exception):
    """The transform raised an error or made no numbers; the message completes "inputs that …"."""


@dataclass(frozen=True)
class Transform:
    """A preprocessing that is applied to every input, once, before the input is stored.

    Parameters
    ----------
    function
        Called with one input: a Pillow image, a clip ``float32[samples]`` in [−1, 1), or a stored
        tensor. It returns a tensor or an array of one shape.
    name
        Where the function comes from, as in a spec; empty for a function given in Python.
    arguments
        What the named object was called with to make the function.
    folder
        Where it was loaded from. In another process it is loaded again.
    sample_rate
        See `load_transform`.
    """

    function: Callable[[Any], Any]
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    sample_rate: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            return Transform, (self.function, self.name, dict(self.arguments))
        load = partial(load_transform, folder=self.folder, sample_rate=self.sample_rate)
        return load, (self.name, dict(self.arguments))

    def __call__(self, x: Any) -> np.ndarray:
        """Transform one input.

        Raises
        ------
        TransformFailed
            If the function raises an error or returns no numbers.
        """
        try:
            return _to_array(self.function(x))
        except USER_ERRORS as error:
            raise TransformFailed(f"make the transform fail ({describe_error(error)})") from error

    def content(self) -> str:
        """The content of the function as text, for fingerprints."""
        made = self.function
        settings = made.settings if isinstance(made, HubProcessor) else made
        return content_of([settings, self.name, dict(self.arguments)])


class HubProcessor:
    """An image processor or feature extractor of Hugging Face, from its folder.

    Parameters
    ----------
    folder
        With ``preprocessor_config.json``. Nothing is downloaded, and no code of the folder is run.
    sample_rate
        Hz of the clips, if the inputs are audio.
    """

    def __init__(self, folder: Path, sample_rate: int | None = None) -> None:
        try:
            from transformers import AutoFeatureExtractor, AutoImageProcessor
        except ImportError as error:
            raise extra_required("transformers", "text") from error
        self.folder, self.settings = folder, _read_settings(folder)
        is_audio = "sampling_rate" in self.settings
        reader = AutoFeatureExtractor if is_audio else AutoImageProcessor
        try:
            processor = reader.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (*USER_ERRORS, ImportError) as error:
            raise DataError(
                f"no processor of this folder can be read: {error}",
                where=str(folder),
                fix="write it with processor.save_pretrained(folder)",
            ) from error
        own = self.settings.get("sampling_rate")
        if is_audio and sample_rate is not None and sample_rate != own:
            raise DataError(
                f"the processor takes audio of {own} Hz, the clips have {sample_rate}",
                where=str(folder),
                fix=f"set sample_rate = {own}",
            )
        self._processor = processor

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor's own files into a folder."""
        self._processor.save_pretrained(str(folder))

    def __call__(self, x: Any) -> Any:
        rate = self.settings.get("sampling_rate")
        if rate is None:
            found = self._processor(images=x, return_tensors="np")
        else:
            found = self._processor(np.asarray(x), sampling_rate=rate, return_tensors="np")
        return next(found[key] for key in OUTPUT_KEYS if key in found)[0]


def load_transform(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    folder: Path,
    sample_rate: int | None = None,
) -> Transform:
    """Load a transform by its name.

    Parameters
    ----------
    name
        ``"package.module:object"``, or the folder of a Hugging Face processor.
    arguments
        If given, or if the object is a class, the object is called with them to make the
        transform.
    folder
        What relative paths start at; modules in it can be imported.
    sample_rate
        Hz, for audio.

    Raises
    ------
    ConfigError
        If it cannot be found or made.
    """
    if ":" not in name:
        path = resolve_path(name, folder)
        if not has_processor(path):
            raise ConfigError(
                f"transform '{name}' is neither a function nor the folder of a processor",
                fix=f'write "package.module:function", or name a folder with {PROCESSOR_FILES[0]}',
            )
        processor = HubProcessor(require_folder(path), sample_rate)
        return Transform(processor, name, {}, folder, sample_rate)
    found = import_named(name, folder, what="transform")
    if not isinstance(found, type) and not arguments:
        return Transform(found, name, {}, folder, sample_rate)
    try:
        made = found(**(arguments or {}))
        return Transform(made, name, dict(arguments or {}), folder, sample_rate)
    except USER_ERRORS as error:
        raise ConfigError(
            describe_error(error), where=name, fix="correct transform_arguments, or the function"
        ) from error


def _read_settings(folder: Path) -> dict[str, Any]:
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            return read_json(folder / name, error=DataError)
    return {}


def _to_array(found: Any) -> np.ndarray:
    """The numbers that a transform returned; TypeError if it returned something else."""
    from PIL import Image

    if isinstance(found, Mapping):
        keys = [key for key in OUTPUT_KEYS if key in found]
        found = found[keys[0]] if keys else found
    if isinstance(found, Image.Image):
        from expunge.data.pixels import to_tensor

        found = to_tensor(found)
    if isinstance(found, Tensor):
        found = to_numpy(found)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or not found.size:
        raise TypeError(f"it returned {type_with_article(found)}, expected a tensor or an array")
    return found.astype(np.float32) if found.dtype == np.float64 else found
