"""Scores of all samples by their likeness to some named bad ones."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import nn

from expunge._core.arrays import AnyFloats, Bools
from expunge._core.progress import Progress, silent
from expunge.config import ScoreConfig
from expunge.data import Samples
from expunge.detection.class_arithmetic import label_margin
from expunge.detection.detectors import detect, needs_of
from expunge.detection.signals import collect
from expunge.detection.similar_samples import find_similar
from expunge.records import Scores, Signals

# The columns of the scores: 1 for named samples, and the probability of being as bad.
NAMED, SIMILAR = "named", "similar"
_EVIDENCE = ("pooled_margin", "augmented_loss")
# Samples with a larger probability are unlearned: one that is missed does more harm than a good one
# that is lost.
MIN_SIMILARITY = 0.3


def score_similar(
    model: nn.Module,
    samples: Samples,
    named: Bools,
    config: ScoreConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Score every sample by the probability that it is bad in the way of the named ones.

    What named samples have in common is looked for in the input, in the plain outputs of all layers
    and in what cross-fitted evidence says of the label; see `find_similar`.

    Parameters
    ----------
    model
        A classifier that was trained on the samples. It is left as it was.
    samples
        The training samples.
    named
        ``bool[n]``, the samples that are known to be bad.
    config
        Layers, views, batch size and precision of the passes.
    seed
        For views and folds.
    progress
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Scores
        ``named``, 1 for named samples, and ``similar``, a probability. The class distributions are
        those of the cross-fitted evidence.

    Raises
    ------
    DataError
        For fewer than five named samples.

    Notes
    -----
    Cost: two plain passes, one for each view, and the regressions of `find_similar`.
    """
    passes = partial(
        collect,
        model,
        samples,
        feature_layers=config.feature_layers,
        batch_size=config.batch_size,
        precision=config.precision,
        seed=seed,
        progress=progress,
    )
    signals = passes(needs=needs_of(_EVIDENCE), views=config.views)
    # A trigger has one place in the plain input. Views would move it.
    plain = passes(needs=frozenset({"features"}), views=0)
    scores = detect(signals, _EVIDENCE)
    found = find_similar(_sources(signals, plain, scores), samples.labels, named, seed=seed)
    return Scores(
        ids=samples.ids,
        labels=samples.labels,
        values={NAMED: named.astype(np.float64), SIMILAR: found.p},
        kinds={NAMED: "label", SIMILAR: "label"},
        class_probs=scores.class_probs,
        agreement=scores.agreement,
        pooled=scores.pooled,
    )


def similar_note(scores: Scores) -> str:
    """Say how many samples were found beside the named ones.

    Parameters
    ----------
    scores
        What `score_similar` returned.
    """
    named, p = scores.values[NAMED] > 0, scores.values[SIMILAR]
    others = p[~named]
    if not others.any():
        return f"nothing tells the {named.sum():,} named samples from others, so no more were found"
    found = int((others > MIN_SIMILARITY).sum())
    return (
        f"{found:,} samples resemble the {named.sum():,} named ones and are unlearned with them; "
        f"about {others.sum():,.0f} are expected to be as bad"
    )


def _sources(signals: Signals, plain: Signals, scores: Scores) -> dict[str, AnyFloats]:
    """Return what named samples are compared in, by name: features, and scores of the label.

    signals: averaged over views. plain: of the plain inputs.
    """
    sources: dict[str, AnyFloats] = dict(plain.features)
    if plain.inputs is not None:
        sources["input"] = plain.inputs
    logits = sources["model"] = np.asarray(plain.logits)
    probs = np.asarray(scores.evidence_probs)
    evidence = np.log(np.maximum(probs, 1e-4)).astype(np.float32)
    sources["class evidence"] = evidence
    sources["label evidence"] = label_margin(evidence, signals.labels)
    sources["model margin"] = label_margin(logits, signals.labels)
    if signals.augmented_loss is not None:
        sources["augmented loss"] = signals.augmented_loss
    if scores.pooled is not None:
        sources["novelty"] = scores.pooled.novelty
    return sources
