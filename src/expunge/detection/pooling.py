"""Features of a layer: which layers, and how their outputs are pooled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from expunge.models.inspection import WEIGHT_LAYERS, ModelLayout

# The number of layers whose features are compared, unless they are named.
N_FEATURE_LAYERS = 6
# The means of an image are taken by parts, if a layer has at most this many of them.
MAX_PART_MEANS = 512


def default_feature_layers(layout: ModelLayout) -> tuple[str, ...]:
    """Select at most 6 layers, evenly over the depth, with the last: early ones memorise least.

    Prefer the output of an innermost block to the layers inside it; containers of blocks are
    skipped.
    """
    layers = layout.feature_layers
    inside = {s: [t for t in layers if t.startswith(f"{s}.")] for s in layers}
    blocks = [s for s in layers if inside[s] and not any(inside[t] for t in inside[s])]
    candidates = [s for s in layers if not any(s in inside[b] for b in blocks)]
    n = len(candidates)
    chosen = np.unique(np.linspace(n - 1, 0, min(n, N_FEATURE_LAYERS)).round().astype(int))
    return tuple(candidates[i] for i in chosen)


def pool(output: Tensor, *, unit: int, max_part_means: int = MAX_PART_MEANS) -> Tensor:
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
    """
    over = tuple(k for k in range(1, output.dim()) if k != unit)
    if not over or all(output.shape[k] == 1 for k in over):
        return output.flatten(1)
    x = output.float()
    mean = parts = x.mean(dim=over)
    variance = x.square().mean(dim=over) - mean.square()
    # What rounding leaves of a constant is no spread.
    spread = torch.where(variance > 1e-6 * mean.square(), variance, 0.0).sqrt()
    if output.dim() == 4 and unit == 1:
        side, d = min(output.shape[2:]), output.shape[1]
        grids = (g for g in (4, 2) if g <= side and g * g * d <= max_part_means)
        parts = nn.functional.adaptive_avg_pool2d(x, next(grids, 1)).flatten(1)
    return torch.cat([parts, spread], dim=1)


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
