"""Which units are ranked and pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from expunge.errors import PruneError, check_range
from expunge.records.arrays import (
    frozen_array,
    require_rows,
)


@dataclass(frozen=True)
class LayerEffect:
    """How much of the noise all units of a layer predict together.

    Parameters
    ----------
    layer
        Its name.
    r_squared
        Cross-validated R² of ``p_noisy`` on the units, in [0, 1].
    """

    layer: str
    r_squared: float


@dataclass(frozen=True)
class DirectionEffect:
    """How much of the noise one principal direction of a layer's units predicts.

    Parameters
    ----------
    layer
        Name of the layer.
    number
        Of the direction, from 0: that of the largest variance.
    r_squared
        R² of ``p_noisy`` on the direction alone, in [0, 1].
    variance_share
        The part of the units' variance that lies in the direction, in [0, 1]: what a projection
        removes.
    q_value
        Benjamini–Hochberg adjusted p-value of R² = 0.
    """

    layer: str
    number: int
    r_squared: float
    variance_share: float
    q_value: float


@dataclass(frozen=True)
class NeuronRanking:
    """Rank units by how much of the noise they carry: sorted by ``(−effect, layer, unit)``.

    Parameters
    ----------
    layer
        Name of the layer of every unit, ``str[u]``.
    unit
        Index of the unit in its layer, ``int64[u]``.
    effect
        The regression coefficient, or the criterion of the ranker, ``float64[u]``.
    stderr
        Standard error of the effect, ``float64[u]``; NaN where the ranker has none.
    q_value
        Benjamini–Hochberg adjusted p-value of ``effect ≤ 0``, ``float64[u]`` in [0, 1]; NaN where
        the ranker has none.
    groups
        For every layer, the layer whose units it shares: residual additions couple layers.
    explained
        R² of ``p_noisy`` by layer.
    layers, directions
        The same evidence for whole layers and for principal directions, the largest R² first; empty
        for rankers that use no data.

    Raises
    ------
    PruneError
        If an effect is not finite.
    """

    layer: np.ndarray
    unit: np.ndarray
    effect: np.ndarray
    stderr: np.ndarray
    q_value: np.ndarray
    groups: Mapping[str, str]
    explained: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[LayerEffect, ...] = ()
    directions: tuple[DirectionEffect, ...] = ()

    def __post_init__(self) -> None:
        effect = np.asarray(self.effect, dtype=np.float64)
        if not np.isfinite(effect).all():
            raise PruneError("a neuron's effect is NaN or infinite")
        require_rows(self, len(effect), "layer", "unit", "stderr", "q_value")
        order = np.lexsort((self.unit, self.layer, -effect))
        for name, dtype in (
            ("layer", str),
            ("unit", np.int64),
            ("effect", np.float64),
            ("stderr", np.float64),
            ("q_value", np.float64),
        ):
            values = np.asarray(getattr(self, name))[order]
            object.__setattr__(self, name, frozen_array(values, dtype))

    def __repr__(self) -> str:
        first = ", ".join(
            f"{layer}[{unit}]" for layer, unit in zip(self.layer[:5], self.unit[:5], strict=True)
        )
        return f"NeuronRanking({len(self.unit):,} units of {self.units_by_layer()}, first {first})"

    def units_by_layer(self) -> dict[str, int]:
        """Number of units of every layer."""
        names, counts = np.unique(self.layer, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def to_table(self) -> pa.Table:
        """One row a unit."""
        names = ("layer", "unit", "effect", "stderr", "q_value")
        return pa.table({k: pa.array(getattr(self, k)) for k in names})


@dataclass(frozen=True)
class Budget:
    """How many units to prune: a fraction or a count.

    Parameters
    ----------
    fraction
        Fraction of the units, in [0, 1]. Excludes ``count``.
    count
        Number of units, 0 or more.
    scope
        ``"layer"``: fraction or count hold for every layer; ``"global"``: over all layers.
    max_layer_fraction
        The largest fraction of any layer that is pruned, in [0, 1).

    Raises
    ------
    PruneError
        If both or neither of fraction and count are given, or a value is out of range.
    """

    fraction: float | None = None
    count: int | None = None
    scope: str = "layer"
    max_layer_fraction: float = 0.9

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise PruneError("a budget is either a fraction or a count", fix="give exactly one")
        limits = {
            "fraction": (self.fraction, "[0, 1]"),
            "count": (self.count, "[0, inf)"),
            "max_layer_fraction": (self.max_layer_fraction, "[0, 1)"),
        }
        check_range(PruneError, limits)
        if self.scope not in ("layer", "global"):
            raise PruneError(f"scope must be 'layer' or 'global', not '{self.scope}'")


@dataclass(frozen=True)
class PrunePlan:
    """Which units are pruned.

    Parameters
    ----------
    units
        Sorted indices of units by layer.
    requested
        The number of units that were requested.
    reasons
        Why fewer are granted.

    Raises
    ------
    PruneError
        If units were requested and none is granted.
    """

    units: Mapping[str, tuple[int, ...]]
    requested: int
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.requested > 0 and self.granted == 0:
            raise PruneError(
                f"{self.requested} units were to be cut and none can be: {'; '.join(self.reasons)}",
                fix="raise max_layer_fraction, name other layers, or ask for 0 units",
            )

    @property
    def granted(self) -> int:
        """Number of units that will be cut."""
        return sum(len(u) for u in self.units.values())
