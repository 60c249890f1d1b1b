"""Writing the weights of a model, and loading those of a file into it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Iterator, Mapping, Set
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from expunge.errors import ModelError, format_ids, raise_all
from expunge.storage.array_files import storable
from expunge.storage.atomic_files import write_file
from expunge.storage.hashing import content_of
from expunge.storage.weight_files import read_weights

_LOGGER = logging.getLogger(__name__)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state dict; what else modules add to it belongs to their settings.

    Examples
    --------
    >>> list(state_of(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    return {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}


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
    state = storable(state_of(model))
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
        See `read_weights`; names may have a prefix, see `fit_weights`.

    Raises
    ------
    ModelError
        For a missing, damaged or other file, a pickle with other objects, NaN or infinite weights,
        and tensors that do not fit.
    """
    fit_weights(model, read_weights(path), where=str(path))


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], *, where: str = "weights") -> None:
    """Load a state dict strictly.

    A tensor that the model ties to another may be absent; two different values for it are an error.
    Absent may be the counts of batches, which old checkpoints of batch norm lack. Names may hold
    the ``module`` and ``_orig_mod`` of DataParallel and torch.compile, or one prefix, as Lightning
    writes them. If all names of the model have the prefix, those without it (of a loss, say) are
    left out, with a warning. Lazy layers that never ran get their shapes from the weights, and so
    do buffers that a forward pass is to fill.

    Raises
    ------
    ModelError
        Naming all tensors that are missing, unexpected, of the wrong shape, or not finite, or the
        prefixes if several fit. The model is then unchanged.
    """
    own, unfilled = state_of(model), _unfilled_buffers(model)
    counts = {k: v for k, v in own.items() if k.split(".")[-1] == "num_batches_tracked"}
    ties = _ties(own)
    needed = own.keys() - counts.keys() - ties.keys()
    state = {**counts, **_without_wrappers(state, own.keys() | unfilled.keys(), needed, where)}
    problems = []
    for name, first in ties.items():
        if name in state and first in state and not torch.equal(state[name], state[first]):
            problems.append(f"the model ties '{name}' to '{first}', their weights differ")
        present = state.get(name, state.get(first))
        if present is not None:
            state.setdefault(name, present)
            state.setdefault(first, present)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys() - unfilled.keys())
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

    Raises
    ------
    ModelError
        If hooks or methods of the model refuse the names that its own state dict has.
    """
    whole = model.state_dict()
    for name in state_of(model):
        del whole[name]
    whole.update(state)
    for name, module in _unfilled_buffers(model).items():
        if name in state:
            like = next(model.parameters(), state[name])
            buffer = torch.empty_like(state[name], device=like.device)
            module._buffers[name.rpartition(".")[2]] = buffer
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        model.load_state_dict(whole, strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"the model does not load its own state dict: {' '.join(str(error).split())}",
            where="model",
            fix="its hooks and methods of state_dict and load_state_dict must undo each other, "
            "also where it is part of another module and names have a prefix",
        ) from error
    model.train(modes[0][1])
    for module, mode in modes:
        module.training = mode


def _without_wrappers(
    state: Mapping[str, Tensor], own: Set[str], needed: Set[str], where: str
) -> dict[str, Tensor]:
    """The weights under the names that they have without a prefix, and wrappers of parts."""
    state = _without_prefix(state, own, needed, where)
    wrappers = {"module", "_orig_mod"} - {part for name in own for part in name.split(".")}
    renamed = {
        ".".join(part for part in name.split(".") if part not in wrappers): value
        for name, value in state.items()
    }
    if len(renamed) < len(state):
        return dict(state)
    return _without_prefix(renamed, own, needed, where)


def _without_prefix(
    state: Mapping[str, Tensor], own: Set[str], needed: Set[str], where: str
) -> dict[str, Tensor]:
    """The weights below a prefix, if those are the model's; all weights if there is none."""
    if state.keys() <= own or needed <= state.keys():
        return dict(state)
    found: dict[str, dict[str, Tensor]] = {}
    for prefix in sorted({p for name in state for p in _prefixes(name, own)}):
        below = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        if below.keys() <= own and (needed <= below.keys() or len(below) == len(state)):
            found[prefix] = below
    if len(found) > 1:
        raise ModelError(
            f"the weights of the model are there under several prefixes: {format_ids(found)}",
            where=where,
            fix="keep those of one: {n.removeprefix(prefix): t for n, t in state.items() "
            "if n.startswith(prefix)}",
        )
    for prefix, below in found.items():
        if rest := [name for name in state if not name.startswith(prefix)]:
            _LOGGER.warning("%s: not of the model, left out: %s", where, format_ids(rest))
        return below
    return dict(state)


def _prefixes(name: str, own: Container[str]) -> Iterator[str]:
    """What stands before a name of the model in a name."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        if ".".join(parts[i:]) in own:
            yield ".".join(parts[:i]) + "."


def _unfilled_buffers(model: nn.Module) -> dict[str, nn.Module]:
    """The module of each buffer that is None, by the name that it has in a state dict."""
    return {
        f"{path}.{name}".removeprefix("."): module
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is None and name not in module._non_persistent_buffers_set
    }


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
    for name, tensor in state_of(model).items():
        hashed.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        hashed.update(values.numpy().data)
    return hashed.hexdigest()
