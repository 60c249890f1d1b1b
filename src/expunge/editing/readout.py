"""A network that is read at several layers and ends behind the last of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.config import PruneMode
from expunge.data import Batch
from expunge.detection.pooling import pool, unit_dimension
from expunge.errors import ModelError
from expunge.models.calls import (
    FORWARD_ERRORS,
    call_model,
    capture_outputs,
    device_of,
    eval_mode,
    first_tensor,
    logits_of,
    module_named,
    to_device,
    unfused_attention,
    used_parameters,
)
from expunge.models.copying import copy_model
from expunge.models.inspection import inspect_layers
from expunge.pruning.dependencies import copy_without_hooks
from expunge.pruning.surgery import apply_plan
from expunge.records import PrunePlan
from expunge.records.editing import HeadPlan
from expunge.storage.weights import fit_weights


class _LastLayerRead(Exception):
    """Ends the forward pass of a body."""


class FeatureReadout(nn.Module):
    """Run a network up to the last of some layers and return their pooled outputs side by side.

    Parameters
    ----------
    body
        The network. It is held, not copied.
    layers
        Names of layers of it, in the order of their calls.
    units
        For each layer the dimension of its units, see `unit_dimension`.
    max_part_means
        See `expunge.detection.pooling.pool`.
    """

    def __init__(
        self, body: nn.Module, layers: Sequence[str], units: Sequence[int], max_part_means: int
    ) -> None:
        super().__init__()
        self.body: nn.Module = body
        self.layers, self.units = tuple(layers), tuple(units)
        self.max_part_means = max_part_means

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return features, ``float32[b, d]``; arguments are those of the body."""
        found: dict[str, Tensor] = {}
        thread = threading.get_ident()

        def keep(name: str, unit: int) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                value = first_tensor(output)
                if value is None:
                    raise ModelError(
                        f"layer '{name}' returns {type(output).__name__}, not a tensor"
                    )
                if threading.get_ident() != thread:  # another call of this network
                    return
                # Pooled at once: a later layer may change the output in place.
                pooled = pool(value, unit=unit, max_part_means=self.max_part_means)
                found.setdefault(name, pooled.float())
                # An exporter follows the calls of layers, which an exception would cut off.
                if len(found) == len(self.layers) and not torch.compiler.is_exporting():
                    raise _LastLayerRead

            return hook

        handles = [
            module_named(self.body, name).register_forward_hook(keep(name, unit))
            for name, unit in zip(self.layers, self.units, strict=True)
        ]
        try:
            with unfused_attention():
                self.body(*args, **kwargs)
        except _LastLayerRead:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([found[name] for name in self.layers], dim=1)


class ReadoutClassifier(nn.Module):
    """A linear head on the standardised features of a `FeatureReadout`.

    Parameters
    ----------
    readout
        Gives the features.
    columns, classes
        Sizes of the head.
    """

    def __init__(self, readout: FeatureReadout, columns: int, classes: int) -> None:
        super().__init__()
        self.readout = readout
        self.location: Tensor
        self.scale: Tensor
        self.register_buffer("location", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))
        self.head = nn.Linear(columns, classes)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits, ``float[b, c]``."""
        z = (self.readout(*args, **kwargs) - self.location) / self.scale
        kind = z.device.type
        if not torch.is_autocast_enabled(kind):
            return cast(Tensor, self.head(z))
        # Its outputs are close to each other: bfloat16 would confuse classes.
        with torch.autocast(kind, enabled=False):
            return cast(Tensor, self.head(z))


def feature_readout(
    model: nn.Module, layers: Sequence[str], example: Batch, *, max_part_means: int
) -> FeatureReadout:
    """Read a network, which is held and not copied, at these layers.

    Raises
    ------
    ModelError
        For an unknown layer, and one that returns no tensor.
    """
    layout, example = inspect_layers(model, example), to_device(example, device_of(model))
    with capture_outputs(model, tuple(layers)) as found, eval_mode(model), torch.no_grad():
        logits_of(model, example)
    units = []
    for name in layers:
        ends = [k for k, end in layout.readouts.items() if end == name]
        chains = [module_named(model, k) for k in ends]
        units.append(unit_dimension(module_named(model, name), chains, found[name]))
    return FeatureReadout(model, layers, units, max_part_means)


def build_classifier(
    model: nn.Module, plan: HeadPlan, example: Batch, *, names: Collection[str] | None = None
) -> ReadoutClassifier:
    """Make the network of a plan: a copy without the layers behind the last one that is read.

    Parameters
    ----------
    model
        The network before the cut. It is left as it was.
    plan
        Which layers are read.
    example
        A batch as the model takes it.
    names
        Of the tensors that the network has. By default it loses the modules that run for the
        example behind the last layer that is read.

    Returns
    -------
    ReadoutClassifier
        Its head is untrained.

    Raises
    ------
    ModelError
        If the network does not have these layers, or gives another number of features.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 3))
    >>> cut = build_classifier(model, HeadPlan(("1",), 512, 8, 3), torch.zeros(2, 4))
    >>> cut(torch.zeros(2, 4)).shape, [type(m).__name__ for m in cut.readout.body]
    (torch.Size([2, 3]), ['Linear', 'ReLU', 'Identity', 'Identity'])
    """
    body = copy_without_hooks(model)
    readout = feature_readout(body, plan.layers, example, max_part_means=plan.max_part_means)
    readout = _without_unused(readout, example, names)
    features = _features(readout, example)
    if features.shape[1] != plan.columns:
        raise ModelError(
            f"the layers give {features.shape[1]} features, the plan says {plan.columns}",
            where="edit",
            fix="give the network that was repaired",
        )
    classifier = ReadoutClassifier(readout, plan.columns, plan.classes)
    return classifier.to(device_of(model)).train(model.training)


def rebuild(
    model: nn.Module,
    plan: PrunePlan | None,
    head: HeadPlan | None,
    state: Mapping[str, Tensor],
    *,
    example: Batch | None,
    mode: PruneMode,
) -> nn.Module:
    """The repaired model from the network before the repair, its plans and the weights.

    Parameters
    ----------
    model
        As its constructor makes it; left as it was.
    plan
        The units that were pruned; None if none were.
    head
        How a closed-form head reads it; None if it has the network's own.
    state
        The state dictionary of the repaired model.
    example
        A batch as the model takes it; needed where there is a plan or a head.
    mode
        How units were pruned.

    Returns
    -------
    torch.nn.Module
        The repaired model, in evaluation mode.

    Raises
    ------
    ModelError
        Naming the tensors that do not fit.
    """
    made = copy_model(model).eval()
    if plan is not None and plan.units:
        assert example is not None
        made = apply_plan(made, plan, example, mode=mode).eval()
    if head is not None:
        assert example is not None
        made = build_classifier(made, head, example, names=state.keys())
    fit_weights(made, state, where="repaired model")
    return made.eval()


def _features(readout: FeatureReadout, example: Batch) -> Tensor:
    example = to_device(example, device_of(readout))
    with eval_mode(readout), torch.no_grad():
        features: Tensor = call_model(readout, example)
    return features


def _without_unused(
    readout: FeatureReadout, example: Batch, names: Collection[str] | None
) -> FeatureReadout:
    """Replace modules behind the layers that are read; none if the body then fails."""
    is_behind = _behind(readout, example) if names is None else _not_among(readout, names)
    unused = _outermost(readout.body, is_behind)
    expected = _features(readout, example)
    smaller = cast(FeatureReadout, copy_without_hooks(readout))
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(smaller.body.get_submodule(parent), child, nn.Identity())
    try:
        found = _features(smaller, example)
    except FORWARD_ERRORS:  # the forward pass reads an attribute of a module behind the last layer
        return readout
    return smaller if torch.equal(found, expected) else readout


def _behind(readout: FeatureReadout, example: Batch) -> Callable[[str], bool]:
    """Whether a module of the body runs only behind the last layer that is read.

    What runs for other inputs alone, as an expert of a mixture does, may be needed.
    """
    work = cast(FeatureReadout, copy_without_hooks(readout)).eval().requires_grad_(True)
    body, example = work.body, to_device(example, device_of(work))
    read = _used_by(body, lambda: call_model(work, example))
    whole = _used_by(body, lambda: logits_of(body, example))

    def is_behind(name: str) -> bool:
        module = body.get_submodule(name)
        own = {id(m) for m in (*module.modules(), *module.parameters())}
        return bool(own & whole) and not own & read

    return is_behind


def _used_by(body: nn.Module, run: Callable[[], Tensor]) -> set[int]:
    """The ``id`` of the modules that a run calls, and of the parameters in its graph."""
    called: set[int] = set()
    handles = [
        module.register_forward_pre_hook(lambda m, _: called.add(id(m)))
        for module in body.modules()
    ]
    with torch.enable_grad():
        used = used_parameters(run(), body.parameters())
    for handle in handles:
        handle.remove()
    return called | used


def _not_among(readout: FeatureReadout, names: Collection[str]) -> Callable[[str], bool]:
    """Whether none of these tensors of a classifier is of a module of its body.

    A hook may give tensors other names in a state dict than they have in the module.
    """
    state = readout.state_dict(prefix="readout.", keep_vars=True)
    held = {id(tensor) for name, tensor in state.items() if name in names}

    def is_absent(name: str) -> bool:
        module = readout.body.get_submodule(name)
        return held.isdisjoint(map(id, (*module.parameters(), *module.buffers())))

    return is_absent


def _outermost(body: nn.Module, holds: Callable[[str], bool]) -> list[str]:
    """The names of the outermost modules with parameters of which that holds."""
    found: list[str] = []
    for name, module in body.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        has_parameters = any(True for _ in module.parameters())
        if name and not inside and has_parameters and holds(name):
            found.append(name)
    return found
