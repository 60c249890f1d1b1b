"""The partitioner ``mixture``: one Gaussian mixture for each kind of evidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge._core.arrays import Floats
from expunge._core.rng import derive
from expunge.detection.class_arithmetic import label_margins
from expunge.detection.class_rows import ClassRows, LazyRows, apply, doubles_of, logs_of
from expunge.detection.gaussian_mixture import (
    fit_evidence,
    gap_rule,
    noisy_share_stderr,
    odds_rule,
    standardise,
    weighted_evidence,
)
from expunge.detection.partitioners import build_partition, partitioners
from expunge.errors import ConfigError, check_range
from expunge.records import Fit, Partition, Scores


@partitioners.register("mixture")
def mixture(
    scores: Scores,
    *,
    seed: int,
    threshold: float = 0.5,
    components: int = 3,
    separation: float = 2.0,
) -> Partition:
    """One Gaussian mixture for each kind of evidence, with 1 … ``components`` components.

    ``p_fault = Σ_noisy w_k N(e; μ_k, σ_k) / Σ_k w_k N(e; μ_k, σ_k)``, made monotone in the evidence
    e; ``p_noisy = 1 − (1 − p_label)(1 − p_input)``. The posterior of another label c is
    ``p_label · q_c / (1 − q_y)``, with q the class distribution of the scores.

    The evidence of a kind is the weighted mean of its standardised scores (`weighted_evidence`);
    label evidence is averaged with the margin of the scores' class distribution. The number of
    components has the lowest Bayesian information criterion. A component is noisy

    - for label evidence, if in it the best other label is more than twice as likely as the given
      one (`odds_rule`: the geometric mean of the odds in the scores' class distribution);
    - for input evidence, if it lies above a gap between two neighbouring components (`gap_rule`)
      and at most two thirds of the samples do.

    So "no noise" is a possible answer, and no truth is needed to orient the two sides.

    Parameters
    ----------
    scores
        Scores of either kind, one or more.
    seed
        For the starts of EM and the bootstrap of the noise rate.
    threshold
        Samples with a larger ``p_noisy`` are flagged; in [0, 1].
    components
        The largest number of components, 1 or more; 1 means that there is no noise.
    separation
        The least gap between clean and bad inputs in pooled standard deviations (Ashman's D), 0 or
        more.

    Returns
    -------
    Partition
        Its ``evidence`` holds ``label_evidence`` and ``input_evidence``, its ``fits`` the mixtures.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    Below 20 samples no mixture is fitted and nothing is flagged. Fails if the evidence of bad and
    good samples overlaps: their share is then estimated from the shape of the tails. Cost: O(n) an
    EM step; 50 refits give the interval of the noise rate.

    References
    ----------
    A two-component mixture of losses: arXiv 1904.11238. Ashman's D: doi 10.1086/117248.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> bad = np.arange(200) < 50
    >>> scores = Scores(
    ...     ids=np.arange(200),
    ...     labels=np.zeros(200),
    ...     values={"distance": rng.standard_normal(200) + 8 * bad},
    ...     kinds={"distance": "input"},
    ...     class_probs=np.full((200, 2), 0.5),
    ... )
    >>> partition = mixture(scores, seed=0)
    >>> bool((partition.flagged == bad).all()), round(partition.noise_rate[0], 2)
    (True, 0.25)
    """
    check_options(threshold=threshold, components=components, separation=separation)
    inputs = input_faults(scores, seed=seed, components=components, separation=separation)
    columns = _columns(scores, "label")
    faults = {"label": np.zeros(len(scores.ids)), "input": inputs.p}
    stderr, fits, evidence = inputs.rate_stderr, inputs.fits, inputs.evidence
    if columns:
        probs = LazyRows(doubles_of(scores.class_probs), _at_least_tiny)
        odds = label_margins(logs_of(probs), scores.labels)
        e = (standardise(weighted_evidence(columns, seed)) + standardise(odds)) / 2
        fit, faults["label"] = fit_evidence(
            e,
            inputs.p <= 0.5,  # the label of a bad input carries no evidence
            kind="label",
            components=components,
            rule=odds_rule(odds),
            seed=derive(seed, "mixture", "label"),
        )
        stderr = float(np.hypot(stderr, noisy_share_stderr(e, fit, seed)))
        fits, evidence = (*fits, fit), {**evidence, "label_evidence": e}
    return build_partition(
        scores, faults, threshold=threshold, rate_stderr=stderr, fits=fits, evidence=evidence
    )


def _at_least_tiny(probs: ClassRows) -> ClassRows:
    return apply(lambda p: np.maximum(p, 1e-12), probs)


def check_options(*, threshold: float, components: int, separation: float) -> None:
    """Raise one ConfigError that names every option out of range."""
    check_range(
        ConfigError,
        {
            "threshold": (threshold, "[0, 1]"),
            "components": (components, "[1, inf)"),
            "separation": (separation, "[0, inf)"),
        },
    )


@dataclass(frozen=True)
class InputFaults:
    """The probability of an input fault, ``float64[n]``, and how it was found."""

    p: Floats
    fits: tuple[Fit, ...]
    evidence: dict[str, Floats]
    seed: int

    @property
    def rate_stderr(self) -> float:
        """The standard error of the rate of input faults; costs 50 fits."""
        if not self.fits:
            return 0.0
        return noisy_share_stderr(self.evidence["input_evidence"], self.fits[0], self.seed)


def input_faults(scores: Scores, *, seed: int, components: int, separation: float) -> InputFaults:
    """Return the probability of an input fault by a mixture of the input evidence.

    The parameters are those of `mixture`. Without a score of that kind no input is bad.
    """
    columns = _columns(scores, "input")
    if not columns:
        return InputFaults(np.zeros(len(scores.ids)), (), {}, seed)
    e = weighted_evidence(columns, seed)
    fit, p = fit_evidence(
        e,
        np.ones(len(e), dtype=bool),
        kind="input",
        components=components,
        rule=gap_rule(separation),
        seed=derive(seed, "mixture", "input"),
    )
    return InputFaults(p, (fit,), {"input_evidence": e}, seed)


def _columns(scores: Scores, kind: str) -> list[Floats]:
    return [standardise(scores.values[name]) for name, k in scores.kinds.items() if k == kind]
