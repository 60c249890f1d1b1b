"""Reading the weights that a file holds: safetensors, and pickles of torch without running them."""

from __future__ import annotations

import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from expunge.errors import ModelError, format_ids
from expunge.storage.json_files import read_json
from expunge.storage.reading import is_file, reading

_LOGGER = logging.getLogger(__name__)
_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)
# Suffixes of files that torch saves, also of model_best.pth.tar.
PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar")
# Where a checkpoint holds the weights of the model, beside its optimiser and others.
_USUAL_KEYS = ("state_dict", "model_state_dict", "model")
_INDEX = ".index.json"
RESAVE_HINT = (
    "in a session where you trust the file, save its weights alone: "
    "torch.save(model.state_dict(), 'weights.pt')"
)


class _Unmade:
    """Stands for an object of a pickle that is not made, so that no code of its class runs."""

    def __new__(cls, *args: object) -> _Unmade:
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Parameters
    ----------
    path
        ``.safetensors``; the index of such files (``model.safetensors.index.json``); or one of
        `PICKLED` that torch's ``weights_only`` loader takes: a state dict, or a dict that holds one
        under ``state_dict``, ``model_state_dict`` or ``model``, or only one. Settings, arrays and
        other objects beside it are not made. Nothing is executed. A warning names averaged weights
        beside those that are read.

    Raises
    ------
    ModelError
        For a missing, damaged or other file, and for a pickled model.
    """
    path = Path(path)
    if not is_file(path):
        raise _no_file(path)
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    if path.suffix not in (".safetensors", ".pt2", *PICKLED):
        raise ModelError(
            f"weights are read from .safetensors, {', '.join(PICKLED)}, not '{path.suffix}'",
            where=str(path),
            fix=f"if torch.save wrote it, name it {path.stem}.pt; else, {RESAVE_HINT}",
        )
    if path.suffix == ".safetensors":
        with reading(path, ModelError, what="not a safetensors file", also=(SafetensorError,)):
            state = load_file(path)
    else:
        state = _read_pickle(path)
    _require_plain(state, str(path))
    return state


def _no_file(path: Path) -> ModelError:
    if not path.is_dir():
        return ModelError("there is no such weights file", where=str(path), fix="check the path")
    names = sorted(p.name for p in path.iterdir())
    indices = [n for n in names if n.endswith(_INDEX)]
    found = indices or [n for n in names if n.endswith((".safetensors", *PICKLED))]
    found = [n for n in found if "model" in n] or found
    fix = f"name a file in it: {format_ids(found)}" if found else "name a file of weights"
    if ".metadata" in names:
        fix = (
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
            f"('{path.name}', 'weights.pt') makes one file of it"
        )
    elif "config.json" in names:
        fix += f'; or, for a model of Transformers, set pretrained = "{path.name}" in a spec'
    return ModelError("weights are read from a file, this is a folder", where=str(path), fix=fix)


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    with reading(path, ModelError, what="not an index of weights files"):
        files = {
            Path(name).name for name in read_json(path, error=ModelError)["weight_map"].values()
        }
    state: dict[str, Tensor] = {}
    for name in sorted(files):
        state |= read_weights(path.parent / name)
    return state


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with reading(path, ModelError, what="not a torch file, or one that is cut off or damaged"):
        _refuse_programs(path)
        try:
            with warnings.catch_warnings(), _without_objects(path):
                warnings.simplefilter("ignore")  # about pickle protocols; errors are raised
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = str(error).replace("\n", " ").split("WeightsUnpickler error: ")[-1]
            raise ModelError(
                "the pickle is damaged or holds more than tensors, and opening it could run code: "
                f"{reason.split('. ')[0]}",
                where=str(path),
                fix=RESAVE_HINT,
            ) from error
    return _find_state(loaded, path)


def _refuse_programs(path: Path) -> None:
    """Refuse an archive of a program, in which torch.load finds no weights."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    kind = ""
    if "constants.pkl" in names:
        kind, state = "TorchScript", f"torch.jit.load('{path.name}').state_dict()"
    elif "archive_format" in names:
        kind, state = "torch.export", f"torch.export.load('{path.name}').state_dict"
    if kind:
        raise ModelError(
            f"the file is a program of {kind}, not weights",
            where=str(path),
            fix=f"torch.save({state}, 'weights.pt') saves its weights",
        )


@contextmanager
def _without_objects(path: Path) -> Iterator[None]:
    """Let torch's safe loader take objects of other classes for `_Unmade`, without their code."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # not in a format whose classes are known before it is read
        names = []
    with safe_globals([_stand_in(*name.rpartition(".")[::2]) for name in names]):
        yield


def _stand_in(module: str, name: str) -> Callable[..., object]:
    """A class of this name that makes nothing."""
    return type(name, (_Unmade,), {"__module__": module})


def _find_state(loaded: object, path: Path) -> dict[str, Tensor]:
    """The only state dict of a checkpoint, or that under a usual key."""
    if _is_state(loaded):
        return dict(loaded)
    parts: dict[str, object] = (
        {str(k): v for k, v in loaded.items()} if isinstance(loaded, Mapping) else {"": loaded}
    )
    usual = [k for k in _USUAL_KEYS if isinstance(parts.get(k), Mapping | _Unmade)]
    everything, parts = parts, {k: parts[k] for k in usual[:1] or parts}
    states = {k: v for k, v in parts.items() if _is_state(v) and (v or usual)}
    opened = f"torch.load('{path.name}', weights_only=False)"
    if len(states) == 1:
        ((key, state),) = states.items()
        if others := [k for k in _alike(everything, state) if k != key]:
            _LOGGER.warning(
                "%s: the weights under '%s' are read, not those of the same shapes under %s; for "
                "these, name a file of them alone",
                *(path, key, format_ids(others)),
            )
        return dict(state)
    if states:
        raise ModelError(
            f"the file holds several state dicts: {format_ids(states)}",
            where=str(path),
            fix=f"save one of them: torch.save({opened}[{min(states)!r}], 'weights.pt')",
        )
    key, value = next(iter(parts.items()), ("", None))
    if len(parts) == 1 and isinstance(value, _Unmade):
        raise ModelError(
            f"the file holds an object of the class {type(value).__module__}."
            f"{type(value).__name__}, not weights alone, and opening it could run code",
            where=str(path),
            fix="of a model, in a session where you trust the file: torch.save("
            f"{opened}{key and f'[{key!r}]'}.state_dict(), 'weights.pt')",
        )
    held = sorted(parts) if isinstance(loaded, Mapping) else [type(loaded).__name__]
    raise ModelError(
        f"the file holds no state dict but {format_ids(held)}", where=str(path), fix=RESAVE_HINT
    )


def _alike(parts: Mapping[str, object], state: Mapping[str, Tensor]) -> list[str]:
    """The keys of state dicts that fit the same network, also one level below: its averages."""
    below = {
        f"{key}.{name}": part
        for key, value in parts.items()
        if isinstance(value, Mapping) and not _is_state(value)
        for name, part in value.items()
    }
    shapes = [t.shape for t in state.values()]
    return [
        key
        for key, part in {**parts, **below}.items()
        if _is_state(part) and [t.shape for t in part.values()] == shapes
    ]


def _is_state(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()
    )


def _require_plain(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors without data, sparse and quantised ones, and types with few operations."""
    odd = [f"{n} is {_kind_of(t)}" for n, t in state.items() if _kind_of(t)]
    if odd:
        raise ModelError(
            f"expected dense tensors of a common type: {format_ids(odd)}",
            where=where,
            fix="save a state dictionary of dense tensors, e.g. `tensor.dequantize().float()`",
        )


def tensor_subclass(tensor: Tensor) -> str:
    """The class of a tensor that is made of others (of torchao, DTensor); empty for any other."""
    return type(tensor).__name__ if hasattr(tensor, "__tensor_flatten__") else ""


def _kind_of(tensor: Tensor) -> str:
    """What is uncommon about a tensor; empty if nothing is."""
    if kind := tensor_subclass(tensor):
        return kind
    if tensor.is_meta:
        return "on the meta device, without data"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.dtype not in _DTYPES:
        return str(tensor.dtype).removeprefix("torch.")
    return ""
