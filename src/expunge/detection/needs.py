"""What a detector can need from the pass over the data, beside logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from expunge.records import Signals

# head_input_norm, attribution, attribution_mass and attributions are taken at one layer;
# layerwise_attribution and attribution_features cost a forward and a backward pass each.
Need = Literal[
    "head_input_norm",
    "attribution",
    "attribution_mass",
    "attributions",
    "layerwise_attribution",
    "features",
    "attribution_features",
    "views",
]


def missing_needs(signals: Signals, needs: Iterable[Need]) -> list[Need]:
    """Return the needs that the signals do not hold, sorted.

    Features are never missing: a network without a hidden layer has none.
    """
    per_sample = signals.per_sample
    has: dict[Need, bool] = {
        "head_input_norm": "head_input_norm" in per_sample,
        "attribution": "attribution" in per_sample,
        "attribution_mass": "attribution_mass" in per_sample,
        "attributions": signals.attributions is not None,
        "layerwise_attribution": any(name.startswith("attribution.") for name in per_sample),
        "features": True,
        "attribution_features": True,
        "views": signals.augmented_probs is not None and signals.augmented_loss is not None,
    }
    return sorted(need for need in needs if not has[need])
