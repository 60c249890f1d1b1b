"""What a model returns, read as logits: a tensor, an object with logits, a tuple, probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

import torch
from torch import Tensor, nn

from expunge.errors import ModelError, format_ids

# ``"probabilities"`` sum to one in each row; ``"sigmoid"``: one independent probability a column.
OutputKind = Literal["logits", "probabilities", "sigmoid"]
_FORM, _TRAINING_FORM = "_expunge_output_form", "_expunge_training_output_form"


class OutputForm(NamedTuple):
    """What the scores in a model's output are, and in which part; None for the usual one."""

    kind: OutputKind = "logits"
    key: str | None = None


# The names under which models return logits, the likeliest first.
_NAMES = ("logits", "out", "output", "preds", "prediction")
_MIN_PROBABILITY = 1e-7  # keeps the logits of a saturated sigmoid finite
# Operations between a sigmoid or softmax and the output that change no value, or only the extremes.
_RESHAPES = (
    *("queeze", "View", "Reshape", "Unsafe", "Select", "Slice", "Alias", "ToCopy", "Clone"),
    "Clamp",
)


def output_tensor(output: object, key: str | None = None) -> Tensor:
    """The tensor of scores in what a model returned: ``float[b, c]``, or ``float[b, 1]``.

    Parameters
    ----------
    output
        A tensor; an object or dictionary with ``logits``; a dictionary or dataclass with one tensor
        of two dimensions; or a tuple, of which the first such tensor counts, as auxiliary outputs
        follow the main one. Containers may hold others. Dimensions of size 1 behind the first do
        not count.
    key
        Which part of the output counts, if it is there; see `find_output_key`.

    Raises
    ------
    ModelError
        If the output is anything else.

    Examples
    --------
    >>> output_tensor((torch.zeros(2, 3), torch.ones(2, 3))).sum().item()
    0.0
    >>> output_tensor({"logits": torch.zeros(2)}).shape, output_tensor(torch.zeros(2, 3, 1)).shape
    (torch.Size([2, 1]), torch.Size([2, 3]))
    """
    found = _parts(output).get(key) if key is not None else None
    found = _find(output) if found is None else found
    if found is not None and not found.is_floating_point():
        raise ModelError(
            f"expected logits of floats, got {found.dtype}",
            where="model output",
            fix="return the scores of the classes, not the predicted class: without argmax",
        )
    if found is not None and found.dim() == 1:
        return found[:, None]
    if found is not None and found.dim() > 2 and sum(n > 1 for n in found.shape[1:]) == 1:
        return found.flatten(1)
    if found is None or found.dim() != 2:
        raise ModelError(
            f"expected logits of shape [batch, classes], got {_describe(output)}",
            where="model output",
            fix="return the logits as a tensor, or under the name `logits`",
        )
    return found


def find_output_key(output: object, n_classes: int) -> tuple[str | None, int]:
    """Find the part of an output with a column for each class, where it is not the usual one.

    Returns
    -------
    key, count
        Its name or position, ``"heads.0"`` in a container of containers, None for the usual part;
        and how many parts have as many columns, 0 if none of several is the usual one.

    Examples
    --------
    >>> find_output_key((torch.zeros(2, 8), torch.zeros(2, 3)), 3)
    ('1', 1)
    >>> find_output_key((torch.zeros(2, 3), torch.zeros(2, 3)), 3)
    (None, 2)
    """
    fitting = [k for k, v in _parts(output).items() if _is_table(v) and v.shape[1] == n_classes]
    usual = _find(output)
    is_named = not isinstance(output, tuple | list) or hasattr(output, "logits")
    if is_named and _is_table(usual) and usual.shape[1] == n_classes:
        return None, 1
    if len(fitting) != 1 or usual is _parts(output)[fitting[0]]:
        return None, 0 if usual is None else len(fitting)
    return fitting[0], 1


def _parts(output: object) -> dict[str, Any]:
    """What a container and those in it hold, by name or position; empty for a tensor."""
    own: dict[Any, Any] = {}
    if isinstance(output, Mapping):
        own = dict(output)
    elif is_dataclass(output):
        own = {f.name: getattr(output, f.name) for f in fields(output)}
    elif isinstance(output, tuple | list):
        own = dict(enumerate(output))
    found: dict[str, Any] = {}
    for name, part in own.items():
        inner = _parts(part)
        found |= {f"{name}.{k}": v for k, v in inner.items()} if inner else {str(name): part}
    return found


def _find(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    parts = _parts(output)
    tables = [v for v in parts.values() if _is_table(v)]
    if isinstance(output, tuple | list):
        return tables[0] if tables else None
    named = next((parts[n] for n in _NAMES if isinstance(parts.get(n), Tensor)), None)
    return named if named is not None or len(tables) != 1 else tables[0]


def _is_table(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with {format_ids(map(str, output))}"
    if isinstance(output, tuple | list):
        return f"{type(output).__name__} of {format_ids(type(v).__name__ for v in output)}"
    return type(output).__name__


def to_logits(scores: Tensor, kind: OutputKind) -> Tensor:
    """Turn scores into logits ``float[b, c]`` with c ≥ 2.

    Logarithms of probabilities are logits; of a sigmoid's p it is ``log p/(1 − p)``. One column z
    is that of the second of two classes: ``[0, z]``.

    Examples
    --------
    >>> to_logits(torch.tensor([[0.0]]), "logits").softmax(dim=1)
    tensor([[0.5000, 0.5000]])
    >>> to_logits(torch.tensor([[0.2, 0.8]]), "probabilities").softmax(dim=1)
    tensor([[0.2000, 0.8000]])
    """
    if kind == "probabilities":
        scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
    elif kind == "sigmoid":
        scores = torch.logit(scores.float(), eps=_MIN_PROBABILITY)
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    return scores


def find_output_kind(scores: Tensor) -> OutputKind:
    """Tell from the values of many samples whether a model returns logits or probabilities.

    Parameters
    ----------
    scores
        ``float[b, c]`` as the model returned them, with their graph: values between 0 and 1 that do
        not sum to 1 are taken for those of a sigmoid, or of a softmax that was clamped, only if one
        made them.

    Examples
    --------
    >>> find_output_kind(torch.randn(8, 3).softmax(dim=1)), find_output_kind(torch.randn(8, 3))
    ('probabilities', 'logits')
    """
    if not may_be_probabilities(scores):
        return "logits"
    error = (scores.detach().float().sum(dim=1) - 1).abs()
    if scores.shape[1] > 1 and bool((error < 4 * torch.finfo(scores.dtype).eps ** 0.75).all()):
        return "probabilities"
    return _made_by(scores)


def may_be_probabilities(scores: Tensor) -> bool:
    """Whether all scores lie in [0, 1]."""
    return bool(((scores >= 0) & (scores <= 1)).all())


def _made_by(scores: Tensor) -> OutputKind:
    """Follow the graph backwards to the operation that made the values."""
    node: Any = scores.grad_fn
    for _ in range(8):
        name = "" if node is None else node.name()
        if "Sigmoid" in name or "HardtanhBackward" in name:
            return "sigmoid"
        if name.startswith("SoftmaxBackward"):
            return "probabilities"
        if not any(word in name for word in _RESHAPES) or not node.next_functions:
            return "logits"
        node = node.next_functions[0][0]
    return "logits"


def mark_output(model: nn.Module, form: OutputForm, *, training: bool = False) -> None:
    """Note on a model of ours the form of its output; copies keep the note.

    The form in training mode is that in evaluation mode unless it is noted too.
    """
    vars(model)[_TRAINING_FORM if training else _FORM] = form


def output_form(model: nn.Module, *, training: bool = False) -> OutputForm:
    """The form of a model's output by its note, which wrappers of the model share."""
    inner = getattr(model, "module", None)  # of a DistributedDataParallel
    notes = vars(model) | (vars(inner) if isinstance(inner, nn.Module) else {})
    form: OutputForm = notes.get(_FORM, OutputForm())
    return notes.get(_TRAINING_FORM, form) if training else form


def possible_forms(output: object) -> list[OutputForm]:
    """Every form that an output may have, logits first."""
    keys = (None, *(key for key, part in _parts(output).items() if isinstance(part, Tensor)))
    return [OutputForm(kind, key) for kind in get_args(OutputKind) for key in keys]
