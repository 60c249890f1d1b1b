"""Gradients of logits at a layer: by autograd, and in closed form behind linear and ReLU layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import ModelError, format_ids
from expunge.models.calls import capture_outputs, logits_of, module_named
from expunge.models.inspection import ModelLayout


def attribute(
    model: nn.Module, batch: Batch, direction: Tensor, *, layers: tuple[str, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each layer's activation h and the gradient there of ``Σ_c direction_c · z_c``.

    By autograd, exact for any network.

    Parameters
    ----------
    model
        A network that returns logits z, ``[b, c]``.
    batch
        Its input.
    direction
        ``float[b, c]``; ``e_given − e_rival`` makes ``h · gradient`` the label-conditional
        attribution.
    layers
        Names of layers.

    Returns
    -------
    dict
        ``{layer: (h, gradient)}``, both of the shape of the layer's output.

    Raises
    ------
    ModelError
        If no gradient reaches a layer.

    Notes
    -----
    Costs a forward pass, and a backward pass down to the first of the layers.
    """
    with torch.enable_grad(), capture_outputs(model, layers, differentiable=True) as captured:
        gradients = gradients_at((logits_of(model, batch) * direction).sum(), captured)
    return {k: (captured[k].detach(), gradients[k]) for k in layers}


def gradients_at(total: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of a sum at each output; ModelError if the model keeps none."""
    found: Sequence[Tensor | None] = [None] * len(outputs)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(outputs.values()), allow_unused=True)
    gradients = {n: g for n, g in zip(outputs, found, strict=True) if g is not None}
    unreached = [name for name in outputs if name not in gradients]
    if unreached:
        raise ModelError(
            f"no gradient reaches {format_ids(unreached)}",
            fix="take torch.no_grad and detach out of the model's forward (torch.utils.checkpoint "
            "needs use_reentrant=False), or name other layers",
        )
    return gradients


def gradient_closed(
    model: nn.Module, activation: Tensor, direction: Tensor, *, tail: tuple[str, ...]
) -> Tensor:
    """Return the gradient of `attribute` in closed form, without autograd.

    With ``h_k`` the input of each tail layer, ``g ← g W`` through a linear layer and
    ``g ← g ⊙ 1[h_k > 0]`` through ReLU, backwards from the direction.

    Parameters
    ----------
    model
        The network that holds the tail.
    activation
        ``float[b, d]``, the input of the first tail layer.
    direction
        ``float[b, c]``.
    tail
        The linear and ReLU layers that alone follow, see `tail_behind`.
    """
    layers = [module_named(model, name) for name in tail]
    inputs, h = [], activation
    for module in layers:
        inputs.append(h)
        h = module(h)
    gradient = direction
    for module, x in zip(reversed(layers), reversed(inputs), strict=True):
        if isinstance(module, nn.Linear):
            gradient = gradient @ weight_of_logits(module, gradient.shape[1])
        elif isinstance(module, nn.ReLU):
            gradient = gradient * (x > 0)
    return gradient


def weight_of_logits(layer: nn.Module, n_outputs: int) -> Tensor:
    """The rows of a linear layer's weight by output; one column of scores is that of class 1 of 2.

    See `to_logits`.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if len(weight) == 1 and n_outputs == 2:
        return torch.cat([torch.zeros_like(weight), weight])
    return weight


def tail_behind(layout: ModelLayout, layer: str) -> tuple[str, ...]:
    """Return the linear and ReLU layers that alone lie between a layer's activation and the logits.

    For the head the activation is its input, so that its tail is itself. Empty if there are other
    operations.
    """
    if layer and layer == layout.head:
        return (layer,)
    return layout.tail[layout.tail.index(layer) + 1 :] if layer in layout.tail else ()


def label_direction(given: Tensor, rival: Tensor, classes: int) -> Tensor:
    """Return ``e_given − e_rival``, ``float[b, c]``, for label-conditional attribution.

    Examples
    --------
    >>> label_direction(torch.tensor([0]), torch.tensor([2]), 3)
    tensor([[ 1.,  0., -1.]])
    """
    one_hot = nn.functional.one_hot
    return (one_hot(given, classes) - one_hot(rival, classes)).float()


def runner_up(logits: Tensor, given: Tensor) -> Tensor:
    """Return the class with the largest logit besides the given one; ties go to the lower class."""
    return logits.scatter(1, given[:, None], -torch.inf).argmax(dim=1)
