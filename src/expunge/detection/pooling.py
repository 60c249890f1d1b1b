"""Features of layers and inputs: which layers, and how they are pooled."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.rng import torch_generator
from expunge.data import Batch
from expunge.models.inspection import WEIGHT_LAYERS, ModelLayout

# The number of layers whose features are compared, unless they are named.
N_FEATURE_LAYERS = 6
# The means of an image are taken by parts, if a layer has at most this many of them.
MAX_PART_MEANS = 512
# The most numbers to which an input is pooled, and the bins of inputs that are indices.
MAX_INPUT_COLUMNS, N_INDEX_BINS = 512, 256
# Up to this many columns, vectors are embeddings; longer ones are clips.
MAX_VECTOR_COLUMNS = 4_096
# On a CPU this many numbers are pooled at once: they stay in the cache.
_CHUNK_NUMBERS = 2**18


def default_feature_layers(layout: ModelLayout) -> tuple[str, ...]:
    """Select at most 6 layers, evenly over the depth, with the last: early ones memorise least.

    Prefer the output of an innermost block to the layers inside it; containers of blocks are
    skipped. The blocks of a transformer, which hold blocks of attention, count as innermost.
    """
    layers = layout.feature_layers
    inside = {s: [t for t in layers if t.startswith(f"{s}.")] for s in layers}
    tokens = {s for s in layout.blocks if not set(inside[s]) & set(layout.blocks)}
    hidden = {t for s in tokens for t in inside[s]} | {s for s in layers if tokens & set(inside[s])}
    layers = tuple(s for s in layers if s not in hidden)
    inside = {s: [t for t in inside[s] if t not in hidden] for s in layers}
    blocks = [s for s in layers if inside[s] and not any(inside[t] for t in inside[s])]
    candidates = [s for s in layers if not any(s in inside[b] for b in blocks)]
    n = len(candidates)
    chosen = np.unique(np.linspace(n - 1, 0, min(n, N_FEATURE_LAYERS)).round().astype(int))
    return tuple(candidates[i] for i in chosen)


def pool(
    output: Tensor,
    *,
    unit: int,
    max_part_means: int = MAX_PART_MEANS,
    mask: Tensor | None = None,
) -> Tensor:
    """Return means and standard deviations of a layer's output over space or time.

    ``[b, …, d, …] → [b, 2 d]``. Of images ``[b, d, h, w]`` the means are taken by parts, 4 × 4 or
    2 × 2 of them: ``[b, 16 d + d]`` or ``[b, 4 d + d]``. Where an activation is, and how much it
    varies, carries more information than its mean alone.

    Parameters
    ----------
    output
        ``float[b, …]``. Without a dimension of space or time it is only flattened.
    unit
        The dimension of size d.
    max_part_means
        Parts are used if there are at most this many means.
    mask
        ``bool[b, t]``: which positions of sequences hold tokens. Padding counts for nothing.
    """
    if mask is not None and output.dim() == 3 and len(mask) == len(output):
        weights = _over_time(mask, output.shape[3 - unit])
        if weights is not None:
            return _pool_tokens(output if unit == 2 else output.transpose(1, 2), weights)
    over = tuple(k for k in range(1, output.dim()) if k != unit)
    if not over or all(output.shape[k] == 1 for k in over):
        return output.flatten(1)
    grid = None
    if output.dim() == 4 and unit == 1:
        side, d = min(output.shape[2:]), output.shape[1]
        grids = (g for g in (4, 2) if g <= side and g * g * d <= max_part_means)
        grid = next(grids, 1)
    # An exported graph takes batches of any size.
    if torch.compiler.is_exporting() or output.device.type != "cpu":
        return _means_and_spread(output, over, grid)
    rows = max(1, _CHUNK_NUMBERS // max(1, math.prod(output.shape[1:])))
    return torch.cat([_means_and_spread(x, over, grid) for x in torch.split(output, rows)])


def _means_and_spread(output: Tensor, over: tuple[int, ...], grid: int | None) -> Tensor:
    """Return means over dimensions, or over the parts of a grid, and standard deviations."""
    x = output.float()
    mean = x.mean(dim=over)
    variance = x.square().mean(dim=over) - mean.square()
    # What rounding leaves of a constant is no spread.
    spread = torch.where(variance > 1e-6 * mean.square(), variance, 0.0).sqrt()
    parts = mean if grid is None else nn.functional.adaptive_avg_pool2d(x, grid).flatten(1)
    return torch.cat([parts, spread], dim=1)


def _over_time(mask: Tensor, length: int) -> Tensor | None:
    """Return the mask for an output of another length, behind convolutions; None if it has none."""
    if length < 2 or length > mask.shape[1]:
        return None
    steps = torch.arange(length, device=mask.device)
    resized = mask[:, steps * mask.shape[1] // length]
    return resized | ~resized.any(dim=1, keepdim=True)


def _pool_tokens(output: Tensor, mask: Tensor) -> Tensor:
    """Return means and standard deviations over tokens: ``[b, t, d] → [b, 2 d]``."""
    weights = (mask.float() / mask.sum(dim=1, keepdim=True))[:, :, None]
    x = output.float()
    mean = (x * weights).sum(dim=1)
    variance = (x.square() * weights).sum(dim=1) - mean.square()
    spread = torch.where(variance > 1e-6 * mean.square(), variance, 0.0).sqrt()
    return torch.cat([mean, spread], dim=1)


def pool_input(x: Batch) -> Tensor:
    """Return the plain inputs as a table: ``float32[b, d]``, with d at most 512 a part.

    What the network has never touched cannot have memorised a label.

    Parameters
    ----------
    x
        A batch. Vectors of few columns stay as they are, those of up to 4,096 become 512 random
        projections, which keep distances; longer ones become means and root mean squares of bins.
        Images become means over a grid of at most 8 × 8 parts and the spread of each channel,
        sequences and clips means and spreads over time. Indices become square roots of their counts
        in 256 hashed bins (texts: see `token_features`). Of a dict, the parts stand beside each
        other.

    Examples
    --------
    >>> pool_input(torch.zeros(2, 3, 32, 32)).shape, pool_input(torch.zeros(2, 30)).shape
    (torch.Size([2, 195]), torch.Size([2, 30]))
    """
    parts = list(x.values()) if isinstance(x, dict) else [x]
    return torch.cat([_pool_input_part(part) for part in parts], dim=1)


def _pool_input_part(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    if not x.is_floating_point():
        bins = torch.remainder(flat.long() * 2654435761, 2**31 - 1) % N_INDEX_BINS
        counts = torch.zeros(len(x), N_INDEX_BINS, device=x.device)
        return counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float32)).sqrt()
    if flat.shape[1] <= MAX_INPUT_COLUMNS:
        return flat.float()
    if x.dim() == 2 and x.shape[1] <= MAX_VECTOR_COLUMNS:
        draw = torch_generator(0, "input projection", x.shape[1])
        directions = torch.randn(x.shape[1], MAX_INPUT_COLUMNS, generator=draw)
        return x.float() @ directions.to(x.device) / math.sqrt(MAX_INPUT_COLUMNS)
    if x.dim() == 2:
        means = nn.functional.adaptive_avg_pool1d(flat[:, None].float(), MAX_INPUT_COLUMNS // 2)
        power = nn.functional.adaptive_avg_pool1d(
            flat[:, None].float() ** 2, MAX_INPUT_COLUMNS // 2
        )
        return torch.cat([means[:, 0], power[:, 0].sqrt()], dim=1)
    if x.dim() == 4:
        side = max(1, min(8, int((MAX_INPUT_COLUMNS / x.shape[1]) ** 0.5) - 1, *x.shape[2:]))
        grid = nn.functional.adaptive_avg_pool2d(x.float(), side).flatten(1)
        return torch.cat([grid, x.float().flatten(2).std(dim=2)], dim=1)
    return pool(x, unit=x.dim() - 1, max_part_means=MAX_INPUT_COLUMNS).float()


def unit_dimension(layer: nn.Module, chains: list[nn.Module], output: Tensor) -> int:
    """Return the dimension of a layer's units: 1 behind convolutions, else the last.

    Parameters
    ----------
    layer
        The layer or block.
    chains
        The weight layers whose chain ends at it. If there are none, those inside it count.
    output
        Its output.
    """
    layers = chains or [m for m in layer.modules() if isinstance(m, WEIGHT_LAYERS)]
    convolved = [not isinstance(m, nn.Linear) for m in layers]
    if output.dim() == 3:
        convolved = [isinstance(m, nn.Conv1d) for m in layers[-1:]]
    return 1 if any(convolved) else output.dim() - 1
