"""The partitioner ``posterior``: scores that are probabilities already."""

from __future__ import annotations

import numpy as np

from expunge._core.arrays import Floats
from expunge.detection.partitioners import build_partition, partitioners
from expunge.errors import ConfigError, check_range
from expunge.records import KINDS, Partition, Scores


@partitioners.register("posterior")
def external_posterior(scores: Scores, *, seed: int, threshold: float = 0.5) -> Partition:
    """Scores that are probabilities already: the largest of each kind is ``p_fault``.

    ``p_fault = max_d s_d`` over the detectors d of a kind;
    ``p_noisy = 1 − (1 − p_label)(1 − p_input)``.

    Parameters
    ----------
    scores
        Scores in [0, 1], one or more.
    seed
        Not used.
    threshold
        Samples with a larger ``p_noisy`` are flagged; in [0, 1].

    Returns
    -------
    Partition
        Without fits and evidence. The interval of the noise rate is that of the mean of independent
        samples, ``1.96 √(Σ_i p_i (1 − p_i)) / n``.

    Raises
    ------
    ConfigError
        If a score lies outside [0, 1], or the threshold does.

    Notes
    -----
    As good as the probabilities are calibrated: the maximum of several overestimates the rate.
    Cost: O(n).

    Examples
    --------
    >>> import numpy as np
    >>> scores = Scores(
    ...     ids=np.arange(2),
    ...     labels=np.zeros(2),
    ...     values={"a": np.array([0.1, 0.9]), "b": np.array([0.4, 0.2])},
    ...     kinds={"a": "label", "b": "label"},
    ...     class_probs=np.full((2, 2), 0.5),
    ... )
    >>> external_posterior(scores, seed=0).p_noisy
    array([0.4, 0.9])
    """
    check_range(ConfigError, {"threshold": (threshold, "[0, 1]")})
    n = len(scores.ids)
    faults: dict[str, Floats] = {}
    for kind in KINDS:
        columns = [scores.values[name] for name, k in scores.kinds.items() if k == kind]
        faults[kind] = np.max([np.zeros(n), *columns], axis=0)
        if faults[kind].max(initial=0.0) > 1 or min(map(np.min, columns), default=0.0) < 0:
            raise ConfigError(
                "partition 'posterior' takes scores in [0, 1]", fix="use partition 'mixture'"
            )
    p_noisy = 1 - (1 - faults["label"]) * (1 - faults["input"])
    stderr = float(np.sqrt((p_noisy * (1 - p_noisy)).sum())) / n
    return build_partition(scores, faults, threshold=threshold, rate_stderr=stderr)
