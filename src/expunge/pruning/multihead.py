"""torch's ``nn.MultiheadAttention`` with fewer heads than its width has room for.

torch fixes the number of heads by the width of the input. `HeadwiseAttention` computes the same
from the same parameters for any number of heads, and calls its output projection as a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

# What torch's attention takes behind query, key and value, in its order.
_OPTIONS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


class HeadwiseAttention(nn.MultiheadAttention):
    """Self- or cross-attention of `num_heads` heads of `head_dim` channels each.

    `use_headwise` makes instances of those of torch; they have the same state dictionary.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *options: Any, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's; ``is_causal`` only describes ``attn_mask`` and changes nothing."""
        given = {**dict(zip(_OPTIONS, options, strict=False)), **named}
        is_batched = query.dim() == 3
        tokens_first = not (self.batch_first and is_batched)
        inputs = [x if is_batched else x[:, None] for x in (query, key, value)]
        q, k, v = (x.transpose(0, 1) if tokens_first else x for x in inputs)
        q, k, v = (self._split(x, part) for part, x in enumerate((q, k, v)))
        mask = self._additive(given.get("attn_mask"), given.get("key_padding_mask"), q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if given.get("need_weights", True):
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            weights = nn.functional.dropout(weights, dropout)
            heads = weights @ v
            weights = weights.mean(dim=1) if given.get("average_attn_weights", True) else weights
        else:
            heads = scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        out = out.transpose(0, 1) if tokens_first else out
        if not is_batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return out, weights

    def _split(self, x: Tensor, part: int) -> Tensor:
        """Queries, keys or values ``[b, h, t, d]`` of tokens ``[b, t, e]``."""
        weight = self.in_proj_weight.chunk(3)[part]
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[part]
        return linear(x, weight, bias).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _additive(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores ``[b, h, t, s]``; True forbids."""
        total = None
        if mask is not None:
            total = _as_float(mask, q)
            if total.dim() == 3:  # one for each sample and each head of the uncut attention
                total = total.view(len(q), -1, *total.shape[1:])[:, list(self._heads())]
        if padding is not None:
            keys = _as_float(padding if padding.dim() == 2 else padding[None], q)[:, None, None]
            total = keys if total is None else total + keys
        return total

    def _heads(self) -> tuple[int, ...]:
        """The indices of the heads before any cut."""
        return getattr(self, "kept_heads", tuple(range(self.num_heads)))


def _as_float(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
    return mask.to(like.dtype)


class Headwise:
    """The attentions of a model that compute head by head, until `remove`."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._attentions = [m for m in modules if _is_plain(m)]
        for attention in self._attentions:
            attention.__class__ = HeadwiseAttention
        # Nested tensors, which leave out padding, go past the attentions' code.
        encoders = [m for m in modules if isinstance(m, nn.TransformerEncoder)]
        self._encoders = [m for m in encoders if self._attentions and m.use_nested_tensor]
        for encoder in self._encoders:
            encoder.use_nested_tensor = False

    def remove(self) -> None:
        """Make the attentions torch's own again, but for those that have lost heads."""
        while self._attentions:
            attention = self._attentions.pop()
            if not _is_cut(attention):
                attention.__class__ = nn.MultiheadAttention
        while self._encoders:
            encoder = self._encoders.pop()
            encoder.use_nested_tensor = not any(map(_is_cut, encoder.modules()))


def use_headwise(model: nn.Module) -> Headwise:
    """Let all of torch's attentions in a model compute head by head.

    Examples
    --------
    >>> attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(1, 3, 8)
    >>> before = attention(x, x, x)[0]
    >>> handle = use_headwise(attention)
    >>> bool(torch.allclose(attention(x, x, x)[0], before, atol=1e-6))
    True
    >>> handle.remove()
    """
    return Headwise(model)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is an attention of torch with one parameter for queries, keys and values."""
    if type(module) is not nn.MultiheadAttention:
        return False
    return module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn


def _is_cut(module: nn.Module) -> bool:
    return hasattr(module, "kept_heads")


def cut_heads(module: nn.Module, heads: list[int]) -> nn.Module:
    """Remove the queries, keys and values of some heads, in place; the output layer is not cut."""
    if not isinstance(module, HeadwiseAttention):
        raise TypeError(f"{type(module).__name__} does not compute head by head")
    left = [h for h in range(module.num_heads) if h not in heads]
    for name in ("in_proj_weight", "in_proj_bias"):
        old = getattr(module, name)
        if old is not None:
            parts = old.detach().view(3, module.num_heads, module.head_dim, *old.shape[1:])
            new = nn.Parameter(parts[:, left].flatten(0, 2).contiguous(), old.requires_grad)
            setattr(module, name, new)
    vars(module)["kept_heads"] = tuple(module._heads()[h] for h in left)
    module.num_heads = len(left)
    module._qkv_same_embed_dim = False  # torch's fused path fixes the number of heads
    return module


def projection_macs(
    module: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor]
) -> int:
    """Multiply-adds of queries, keys and values in one call; the output layer counts by itself."""
    weight: Tensor = module.in_proj_weight  # type: ignore[assignment]
    names = ("query", "key", "value")
    tokens = [args[k] if k < len(args) else named[name] for k, name in enumerate(names)]
    return sum(x.numel() for x in tokens) * (len(weight) // 3)
