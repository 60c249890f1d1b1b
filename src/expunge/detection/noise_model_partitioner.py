"""The partitioner ``noise-model``: a noise transition for labels, a mixture for inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from expunge._core.arrays import Bools, Floats
from expunge.detection.class_arithmetic import at_label
from expunge.detection.class_rows import (
    ClassRows,
    as_float64,
    by_chunks,
    concatenate_sources,
    keep_top,
)
from expunge.detection.gaussian_mixture import MIN_SAMPLES, noise_separation
from expunge.detection.memorisation import has_memorised
from expunge.detection.mixture_partitioner import check_options, input_faults, mixture
from expunge.detection.partitioners import build_partition, partitioners
from expunge.records import Component, Fit, Partition, Scores

if TYPE_CHECKING:
    from expunge.detection.noise_rows import NoiseModel


@partitioners.register("noise-model")
def noise_model(
    scores: Scores,
    *,
    seed: int,
    threshold: float = 0.5,
    components: int = 3,
    separation: float = 2.0,
) -> Partition:
    """Label faults by a noise transition, input faults by a mixture of Gaussians.

    The sources of the scores predict the right label's distribution ``π_i``, and given labels are
    right ones seen through a transition ``T``, both fitted together (see `fit_noise_model`). Then

    ``p_label = 1 − π_i(y) T_yy / Σ_c π_i(c) T_cy``,

    and the suggested label has the highest ``π_i(c) T_cy``: a label that is often given where
    another is right (pair flips) is less credible. If right labels alone explain the given ones as
    well (Bayesian information criterion), no label is wrong. The only assumption about the noise is
    that the transition does not depend on the input; if it does, T is a mean over inputs.

    Parameters
    ----------
    scores
        Scores with ``loo_probs``, ``model_probs`` and, possibly, ``external_probs``.
    seed
        For the starts of EM and the bootstrap of the noise rate.
    threshold
        Samples with a larger ``p_noisy`` are flagged; in [0, 1].
    components, separation
        Of the mixture of input evidence, see `mixture`.

    Returns
    -------
    Partition
        Its ``evidence`` holds ``label_evidence``, the log-odds of a wrong label, and
        ``input_evidence``.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    A model that has memorised its labels is not a source; any other is (see `include_model_probs`).
    It has memorised if it agrees with the given labels far more often than under random views, or,
    without views, with more than 95 % of them (see `has_memorised`). External probabilities are
    treated as the model is, or, if that has memorised, as the layers are. Samples with an input
    fault do not take part in the fit. The result is that of `mixture` if there are fewer than 20
    samples, if no source has class probabilities, or if neither views nor the agreement show
    whether the model has memorised. Cost: see `fit_noise_model`.

    References
    ----------
    Misclassification in discrete-response models: doi 10.1016/S0304-4076(98)00015-3.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> right = rng.integers(0, 3, 600)
    >>> given = np.where(rng.random(600) < 0.2, (right + 1) % 3, right)
    >>> evidence = 0.9 * np.eye(3)[right] + 0.1 / 3
    >>> scores = Scores(
    ...     ids=np.arange(600),
    ...     labels=given,
    ...     values={"lda_margin": np.zeros(600)},
    ...     kinds={"lda_margin": "label"},
    ...     class_probs=evidence,
    ...     agreement={"plain": 1.0},
    ...     loo_probs=evidence[None],
    ... )
    >>> partition = noise_model(scores, seed=0)
    >>> bool((partition.flagged == (given != right)).all())
    True
    >>> bool((partition.suggested_label == right).all())
    True
    """
    memorised, labels = has_memorised(scores), scores.labels
    assert scores.loo_probs is not None
    assert scores.external_probs is not None
    n_sources = len(scores.loo_probs) + len(scores.external_probs)
    if not n_sources or len(labels) < MIN_SAMPLES or memorised is None:
        return mixture(
            scores, seed=seed, threshold=threshold, components=components, separation=separation
        )
    check_options(threshold=threshold, components=components, separation=separation)
    inputs = input_faults(scores, seed=seed, components=components, separation=separation)
    usable = inputs.p <= 0.5
    if usable.sum() < MIN_SAMPLES:
        usable = np.ones(len(labels), dtype=bool)
    model, q = _fit_right_labels(scores, usable, is_memorised=memorised, seed=seed)
    p_label = np.clip(1 - as_float64(at_label(q, labels)), 0.0, 1.0)
    odds = np.clip(p_label, 1e-6, 1 - 1e-6)
    e = np.log(odds / (1 - odds))
    partition = build_partition(
        scores,
        {"label": p_label, "input": inputs.p},
        threshold=threshold,
        rate_stderr=float(np.hypot(inputs.rate_stderr, model.rate_stderr)),
        fits=(*inputs.fits, two_sided_fit(e, p_label, usable, model.bic)),
        evidence={**inputs.evidence, "label_evidence": e},
    )
    best, probability = q.argmax(axis=1), np.clip(q.max(axis=1), 0.0, 1.0)
    return replace(partition, suggested_label=best, suggested_probability=probability)


def _fit_right_labels(
    scores: Scores, usable: Bools, *, is_memorised: bool, seed: int
) -> tuple[NoiseModel, ClassRows]:
    """Fit the noise model on the usable samples; return the right labels' posterior of all."""
    from expunge.detection.noise_model import fit_noise_model, include_model_probs

    sources, model_probs = scores.loo_probs, scores.model_probs
    external, trusted = scores.external_probs, np.asarray(scores.trusted)
    assert sources is not None
    assert model_probs is not None
    assert external is not None
    labels, n_model_sources = scores.labels, None
    if is_memorised:  # external sources that have memorised too are not selected
        sources = concatenate_sources(sources, external)
    else:
        model_probs = concatenate_sources(model_probs, external)
        sources = include_model_probs(sources, model_probs, labels, usable)
        n_model_sources = len(model_probs)
    model = fit_noise_model(
        sources[:, usable],
        labels[usable],
        seed=seed,
        trusted=trusted[usable],
        n_model_sources=n_model_sources,
    )
    is_given = trusted if model.has_noise or not is_memorised else np.ones(len(labels), dtype=bool)

    def posterior(rows: slice) -> ClassRows:
        q = model.posterior(np.asarray(sources[:, rows]), labels[rows])
        given = np.eye(q.shape[1])[labels[rows]]
        return keep_top(np.where(is_given[rows, None], given, q), labels[rows])

    return model, by_chunks(posterior, len(labels))


def two_sided_fit(
    e: Floats, p: Floats, usable: Bools, bic: Mapping[int, float] | None = None
) -> Fit:
    """Summarise the clean and the noisy side of the label evidence: weight, mean, deviation.

    Parameters
    ----------
    e, p
        ``float64[n]``, the evidence and the probability of a wrong label.
    usable
        ``bool[n]``, the samples that count.
    bic
        By number of components, if models were compared.
    """
    parts = []
    for noisy, share in ((False, (1 - p) * usable), (True, p * usable)):
        if share.sum() > 0:
            mean = float(np.average(e, weights=share))
            std = float(np.sqrt(np.average((e - mean) ** 2, weights=share)))
            parts.append(Component(float(share.sum() / usable.sum()), mean, std, noisy))
    return Fit("label", tuple(parts), bic or {}, noise_separation(tuple(parts)))
