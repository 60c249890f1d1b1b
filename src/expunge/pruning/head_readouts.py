"""What each head of an attention contributes, for the ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from expunge._core.arrays import Array, Floats
from expunge.data import Batch
from expunge.models.architecture import is_transposed_linear
from expunge.models.calls import device_of, eval_mode, logits_of, to_device, unfused_attention
from expunge.pruning.attention_heads import Heads
from expunge.pruning.dependencies import trace
from expunge.pruning.multihead import use_headwise


def readable_heads(model: nn.Module, example: Batch) -> dict[str, Heads]:
    """The attentions of which the channels of each sample can be separated, by name.

    Layers whose units one other layer alone reads are among them, with units as heads.

    Parameters
    ----------
    model
        Left as it was.
    example
        One sample or more.

    Raises
    ------
    ModelError, PruneError
        As `trace`.
    """
    traced = trace(model, example)
    heads = {**traced.heads, **traced.read_units}
    n = len(next(iter(example.values()))) if isinstance(example, dict) else len(example)
    first = {k: v[:1] for k, v in example.items()} if isinstance(example, dict) else example[:1]
    found = []
    for batch in (first, example):
        with eval_mode(model), torch.no_grad(), capture_heads(model, heads) as inputs:
            logits_of(model, to_device(batch, device_of(model)))
        found.append(dict(inputs))
    one, all_ = found
    return {
        name: own
        for name, own in heads.items()
        if name in all_
        and all_[name].numel() == n * one[name].numel()
        and torch.allclose(all_[name].reshape(n, -1)[0], one[name].flatten(), 1e-3, 1e-5)
    }


@contextmanager
def capture_heads(
    model: nn.Module, heads: Mapping[str, Heads], *, differentiable: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Collect the channels of all heads at each forward pass, by attention.

    Parameters
    ----------
    model
        Has no more hooks after the block, and torch's own attentions are as they were.
    heads
        By the name of the attention.
    differentiable
        Whether they carry gradients, also in a frozen model.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., object]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> object:
            value = args[0]
            if differentiable and not value.requires_grad:
                value = value.detach().requires_grad_()
            found[name] = value
            return (value.clone() if differentiable else value, *args[1:])

        return hook

    with ExitStack() as stack:
        if heads:
            stack.callback(use_headwise(model).remove)
            stack.enter_context(unfused_attention())
        for name, own in heads.items():
            reader = model.get_submodule(own.reader)
            stack.callback(reader.register_forward_pre_hook(keep(name)).remove)
        yield found


def by_head(values: Tensor, heads: Heads, n: int, reduce: Callable[..., Tensor]) -> Tensor:
    """Values ``[n, h]`` of n samples and h heads from the channels of their tokens.

    Windows of one sample follow each other.
    """
    return reduce(values.reshape(n, -1, heads.count, heads.width), (1, 3))


def heads_norm(model: nn.Module, heads: Heads) -> Floats:
    """L2 norm of the weights that write each head, ``float64[h]``."""
    attention = model.get_submodule(heads.attention)
    if isinstance(attention, nn.MultiheadAttention):
        parts = attention.in_proj_weight.detach().double().view(3, heads.count, -1)
        total = parts.pow(2).sum(dim=(0, 2))
    else:
        total = torch.zeros(heads.count, dtype=torch.float64)
        for name, rows in heads.rows.items():
            layer = model.get_submodule(name)
            weight: Tensor = layer.weight.detach().double()  # type: ignore[operator]
            weight = (weight.T if is_transposed_linear(layer) else weight).cpu()
            total += torch.stack([weight[list(own)].pow(2).sum() for own in rows])
    norms: Array = total.sqrt().cpu().numpy()
    return norms
