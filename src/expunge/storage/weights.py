"""Reading and writing weights: safetensors, and pickles only with torch's safe loader."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from expunge.errors import ModelError, format_ids, raise_all
from expunge.storage.array_files import storable
from expunge.storage.atomic_files import write_file
from expunge.storage.hashing import content_of
from expunge.storage.reading import is_file, reading

_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)
# Suffixes of files that torch saves.
PICKLED = (".pt", ".pth", ".ckpt", ".bin")
RESAVE_HINT = (
    "in a session where you trust the file, re-save it: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the model's state to a safetensors file, in one atomic step.

    Tied tensors are written under each of their names, so the file loads into any model with these
    names.

    Parameters
    ----------
    model
        Left as it was.
    path
        Ends in ``.safetensors``.
    metadata
        Text that is written to the header of the file.

    Raises
    ------
    ModelError
        For another suffix, a folder that does not exist, and NaN or infinite weights.
    RunError
        If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(
            f"weights are written as .safetensors, not '{path.suffix}'", where=str(path)
        )
    if not path.parent.is_dir():
        raise ModelError("the folder does not exist", where=str(path.parent), fix="create it")
    state = storable(model.state_dict())
    _require_finite(state, str(path))

    def write(file: Path) -> None:
        save_file(state, file, metadata=dict(metadata or {}))
        _sort_metadata(file)

    write_file(path, write)


def _sort_metadata(file: Path) -> None:
    """Sort the metadata of a safetensors file, whose order is random, so that bytes are equal."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            if len(text) <= length:
                opened.seek(8)
                opened.write(text.ljust(length))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weights file into the model, strictly.

    Parameters
    ----------
    model
        Changed only if everything fits.
    path
        ``.safetensors``; or one of `PICKLED` if torch's ``weights_only`` loader takes it: a state
        dict, or a dict that holds one under ``state_dict``, ``model_state_dict`` or ``model``.
        Nothing is executed.

    Raises
    ------
    ModelError
        For a missing, damaged or other file, a pickle with other objects, NaN or infinite weights,
        and tensors that do not fit.
    """
    fit_weights(model, read_weights(path), where=str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU; see `load_weights`."""
    path = Path(path)
    if not is_file(path):
        raise ModelError("there is no such weights file", where=str(path), fix="check the path")
    if path.suffix == ".safetensors":
        with reading(path, ModelError, what="not a safetensors file", also=(SafetensorError,)):
            state = load_file(path)
    elif path.suffix in PICKLED:
        state = _read_pickle(path)
    else:
        raise ModelError(
            f"weights are read from .safetensors, {', '.join(PICKLED)}, not '{path.suffix}'",
            where=str(path),
            fix=RESAVE_HINT,
        )
    _require_plain(state, str(path))
    return state


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with reading(path, ModelError, what="not a torch file, or one that is cut off or damaged"):
        try:
            with warnings.catch_warnings():
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
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()
    ):
        held = sorted(map(str, loaded)) if isinstance(loaded, Mapping) else [type(loaded).__name__]
        raise ModelError(
            f"the file holds no state dict but {format_ids(held)}", where=str(path), fix=RESAVE_HINT
        )
    return dict(loaded)


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], *, where: str = "weights") -> None:
    """Load a state dict strictly.

    A tensor that the model ties to another may be absent; two different values for it are an error.
    Absent may be the counts of batches, which old checkpoints of batch norm lack. Names may hold
    the ``module`` and ``_orig_mod`` of DataParallel and torch.compile, or one prefix, as Lightning
    writes them. Lazy layers that never ran get their shapes from the weights.

    Raises
    ------
    ModelError
        Naming all tensors that are missing, unexpected, of the wrong shape, or not finite. The
        model is then unchanged.
    """
    own = model.state_dict()
    state = _without_wrappers(state, own)
    counts = {k: v for k, v in own.items() if k.split(".")[-1] == "num_batches_tracked"}
    state = {**counts, **state}
    problems = []
    for name, first in _ties(own).items():
        if name in state and first in state and not torch.equal(state[name], state[first]):
            problems.append(f"the model ties '{name}' to '{first}', their weights differ")
        present = state.get(name, state.get(first))
        if present is not None:
            state.setdefault(name, present)
            state.setdefault(first, present)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing:
        problems.append(f"missing: {format_ids(missing)}")
    if unexpected:
        problems.append(f"unexpected: {format_ids(unexpected)}")
    shapes = [
        f"{n} is {list(state[n].shape)}, the model has {list(own[n].shape)}"
        for n in own
        if n in state and not is_lazy(own[n]) and state[n].shape != own[n].shape
    ]
    if shapes:
        problems.append(f"wrong shape: {format_ids(shapes)}")
    raise_all(ModelError, problems, where=where)
    _require_finite(state, where)
    load_state(model, state)


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict strictly; layers that ask for the version of its format get today's.

    Files hold tensors alone, and some layers refuse a state dict without a version. Some keep in
    evaluation mode what they made of their former weights (LeViT), until they are trained.
    """
    whole = model.state_dict()
    whole.clear()
    whole.update(state)
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.load_state_dict(whole, strict=True)
    model.train(modes[0][1])
    for module, mode in modes:
        module.training = mode


def _without_wrappers(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that they have without wrappers of the model or its parts.

    A prefix of all names that is not the model's, as a Lightning module writes it, is one too.
    """
    prefix = "" if state.keys() <= own.keys() else _common_prefix(state, own)
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    wrappers = {"module", "_orig_mod"} - {part for name in own for part in name.split(".")}
    renamed = {
        ".".join(part for part in name.split(".") if part not in wrappers): value
        for name, value in state.items()
    }
    return renamed if len(renamed) == len(state) else dict(state)


def _common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The prefix without which all names are the model's; empty without one."""
    first = min(state, default="")
    for prefix in (first.removesuffix(name) for name in own if first.endswith(f".{name}")):
        if all(n.startswith(prefix) and n.removeprefix(prefix) in own for n in state):
            return prefix
    return ""


def _ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name whose tensor is the same object as an earlier one: the earlier name."""
    first: dict[tuple[int, torch.Size], str] = {}
    ties = {}
    for name, tensor in state.items():
        if not is_lazy(tensor) and tensor.numel():
            earlier = first.setdefault((tensor.data_ptr(), tensor.shape), name)
            if earlier != name:
                ties[name] = earlier
    return ties


def _require_plain(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors without data, sparse and quantised ones, and types with few operations."""
    odd = [f"{n} is {_kind_of(t)}" for n, t in state.items() if _kind_of(t)]
    if odd:
        raise ModelError(
            f"expected dense tensors of a common type: {format_ids(odd)}",
            where=where,
            fix="save a state dictionary of dense tensors, e.g. `tensor.dequantize().float()`",
        )


def _kind_of(tensor: Tensor) -> str:
    """What is uncommon about a tensor; empty if nothing is."""
    if tensor.is_meta:
        return "on the meta device, without data"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.dtype not in _DTYPES:
        return str(tensor.dtype).removeprefix("torch.")
    return ""


def _require_finite(state: Mapping[str, Tensor], where: str) -> None:
    bad = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise ModelError(
            f"NaN or infinite weights in {format_ids(bad)}",
            where=where,
            fix="use a checkpoint from before the training diverged",
        )


def model_fingerprint(model: nn.Module) -> str:
    """Hash a model: its architecture, the code and settings of its own classes, and its weights.

    Parameters
    ----------
    model
        On any device; the hash does not depend on it.

    Returns
    -------
    str
        SHA-256 in hexadecimal.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(2, 2)
    >>> before = model_fingerprint(model)
    >>> _ = nn.init.zeros_(model.weight)
    >>> model_fingerprint(model) == before
    False
    """
    hashed = hashlib.sha256(repr(model).encode())
    for module in model.modules():
        # A tensor, or None, may be left by a forward pass.
        plain = {k: v for k, v in vars(module).items() if not isinstance(v, Tensor | None)}
        settings = {k: v for k, v in plain.items() if k[0] != "_" and k != "training"}
        forward = type(module).forward if type(module).__module__[:6] != "torch." else None
        hashed.update(content_of([settings, forward]).encode())
    for name, tensor in model.state_dict().items():
        hashed.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()
