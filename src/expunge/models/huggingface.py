"""Classifiers in folders that transformers' Trainer or ``save_pretrained`` wrote.

The weights are read with transformers, and adapters with peft: from files on disk only, and without
code from the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from expunge.errors import ModelError, extra_required, format_ids
from expunge.storage.json_files import read_json

CONFIG, ADAPTER = "config.json", "adapter_config.json"
# Files of which one shows that a folder holds a tokenizer too.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")
# What the names of classifiers in config.json hold.
_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")


def is_pretrained(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter with its configuration."""
    return (folder / CONFIG).is_file() or (folder / ADAPTER).is_file()


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def require_model_folder(folder: Path) -> None:
    """Raise ModelError if there is no such folder."""
    if not folder.is_dir():
        raise ModelError(
            "there is no such model folder",
            where=str(folder),
            fix="name a checkpoint folder of a Trainer, or one that save_pretrained wrote",
        )


def load_pretrained(folder: Path, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Load the classifier of a folder, model and weights.

    Parameters
    ----------
    folder
        With ``config.json`` and weights, as `Trainer` and ``save_pretrained`` write them; or with
        ``adapter_config.json`` and the weights of an adapter (LoRA and others), whose base model is
        a folder too.
    arguments
        Keyword arguments of ``from_pretrained``: ``num_labels`` of an adapter's base, for example.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. Of an adapter the base stays frozen.

    Raises
    ------
    ModelError
        If the folder holds no classifier, weights are missing, or the base of an adapter is no
        folder.
    ConfigError
        If transformers or peft is not installed.
    """
    require_model_folder(folder)
    if not is_pretrained(folder):
        raise ModelError(
            f"has neither {CONFIG} nor {ADAPTER}",
            where=str(folder),
            fix="name a checkpoint folder of a Trainer (checkpoint-500), not the folder above it",
        )
    arguments = dict(arguments or {})
    if not (folder / ADAPTER).is_file():
        return _classifier(folder, arguments)
    base = _base_folder(folder)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise extra_required("peft", "huggingface") from error
    model = _classifier(base, arguments, is_base=True)
    with _readable_errors(folder), quiet():
        adapted: nn.Module = PeftModel.from_pretrained(
            model, str(folder), is_trainable=True, local_files_only=True
        )
    return adapted.eval()


def class_names(folder: Path) -> tuple[str, ...]:
    """The class names of a model folder, in the order of the logits; () if it states none.

    Names that transformers made up (``LABEL_0``) are none.
    """
    if not (folder / CONFIG).is_file():
        return ()
    names = read_json(folder / CONFIG, error=ModelError).get("id2label")
    if not isinstance(names, dict) or set(names) != set(map(str, range(len(names)))):
        return ()
    found = tuple(str(names[str(k)]) for k in range(len(names)))
    return () if found == tuple(f"LABEL_{k}" for k in range(len(found))) else found


def _classifier(folder: Path, arguments: dict[str, Any], *, is_base: bool = False) -> nn.Module:
    """Load a classifier; the head of an adapter's base may be new."""
    try:
        import transformers
    except ImportError as error:
        raise extra_required("transformers", "text") from error
    name = _class_name(folder, is_base)
    loader = getattr(transformers, name, None)
    if loader is None:
        raise ModelError(
            f"transformers {transformers.__version__} has no {name}",
            where=str(folder / CONFIG),
            fix="update transformers; code in the folder is not run",
        )
    with _readable_errors(folder), quiet():
        model, report = loader.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    missing = sorted(report["missing_keys"])
    if missing and not is_base:
        raise ModelError(
            f"the folder has no weights for {format_ids(missing)}",
            where=str(folder),
            fix="name the folder of the fine-tuned classifier, not of the encoder it started from",
        )
    classifier: nn.Module = model.float().eval()
    return classifier


def _class_name(folder: Path, is_base: bool) -> str:
    """The class of a classifier: that which wrote it, as one type of model may have several."""
    named = read_json(folder / CONFIG, error=ModelError).get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if any(kind in architecture for kind in _CLASSIFIERS):
        return architecture
    if is_base:
        return "AutoModelForSequenceClassification"
    raise ModelError(
        f"holds {architecture or 'a model of unknown architecture'}, expected a classifier "
        f"({', '.join(f'…{kind}' for kind in _CLASSIFIERS)})",
        where=str(folder / CONFIG),
        fix="fine-tune it as a classifier first",
    )


def _base_folder(folder: Path) -> Path:
    name = read_json(folder / ADAPTER, error=ModelError).get("base_model_name_or_path")
    for base in (Path(str(name)), folder / str(name)):
        if name and (base / CONFIG).is_file():
            return base
    raise ModelError(
        f"the adapter's base model '{name}' is not on disk",
        where=str(folder / ADAPTER),
        fix="save the base model with save_pretrained, and write its folder under "
        "base_model_name_or_path",
    )


@contextmanager
def _readable_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise for broken folders into ModelError."""
    from safetensors import SafetensorError

    kinds = (OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, ImportError)
    try:
        yield
    except (*kinds, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise ModelError(
            f"cannot be loaded: {type(error).__name__}: {text[:300]}",
            where=str(folder),
            fix="check that all its files were copied, and model.arguments",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report of transformers inside the block."""
    from transformers.utils import logging as reports

    level, bar = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity(logging.ERROR)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bar:
            reports.enable_progress_bar()
