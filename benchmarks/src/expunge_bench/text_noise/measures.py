"""Measures of the benchmark: detection of noise, and ROUGE of summaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from expunge._core.arrays import Bools, Floats
from expunge.evaluation import metrics
from expunge.text.encoders import Encoder
from expunge.text.scores import TextScores
from expunge.text.summarisers import centroid, lead, rouge
from expunge_bench.text_noise.faults import NoisyText, count_tokens

# A smaller drop of ROUGE-1 is no drop: fractions of it mean nothing.
MIN_ROUGE_DROP = 0.01
Measures = Mapping[str, float | None]


def measure_detection(
    found: Sequence[TextScores], noisy: Sequence[NoisyText], *, by_token: bool
) -> dict[str, float | None]:
    """Compare scores with the true places of the noise.

    Parameters
    ----------
    found
        The scores of each document.
    noisy
        The documents with their noise.
    by_token
        Whether tokens have scores of their own. Otherwise they have that of their sentence.

    Returns
    -------
    dict
        ``auroc``: over the tokens of all documents, as published. ``auroc_document``: the mean
        over documents. ``auroc_sentence``: over the sentences of all documents. ``f1``,
        ``precision`` and ``recall`` of the decision about sentences; ``fpr``, the fraction of
        clean sentences that it removes. ``noisy_sentences``: their fraction. None for an AUROC
        without two classes.
    """
    truth = [one.noisy(s.sentences) for one, s in zip(noisy, found, strict=True)]
    weights = [_sentence_lengths(s) for s in found]
    columns = [(t, s.scores, w) for t, s, w in zip(truth, found, weights, strict=True)]
    if by_token:
        columns = [
            (one.noisy(s.tokens), s.token_scores, np.ones(len(s.tokens)))
            for one, s in zip(noisy, found, strict=True)
        ]
    by_document = [_auroc(*column) for column in columns]
    defined = [value for value in by_document if value is not None]
    pooled = [np.concatenate(part) for part in zip(*columns, strict=True)]
    y, flagged = np.concatenate(truth), np.concatenate([s.is_noise for s in found])
    scores = np.concatenate([s.scores for s in found])
    return {
        "auroc": _auroc(*pooled),
        "auroc_document": float(np.mean(defined)) if defined else None,
        "auroc_sentence": _auroc(y, scores, np.ones(len(y))),
        "f1": metrics.f1(y, flagged),
        "precision": float(precision_score(y, flagged, zero_division=0.0)),
        "recall": float(recall_score(y, flagged, zero_division=0.0)),
        "fpr": float(flagged[~y].mean()) if not y.all() else None,
        "noisy_sentences": float(y.mean()),
    }


class _Cached(Protocol):
    def __call__(
        self, version: str, summariser: str, compute: Callable[[], Measures]
    ) -> Measures: ...


def measure_summaries(
    texts: Mapping[str, Sequence[str]],
    *,
    references: Sequence[str],
    encoder: Encoder,
    cached: _Cached,
) -> dict[str, float | None]:
    """ROUGE of the summaries of each version of the documents.

    Parameters
    ----------
    texts
        The documents in the versions ``clean``, ``noisy``, ``filtered`` and ``oracle``.
    references
        The reference summaries. Ours have as many words as these have on average.
    encoder
        The encoder of the centroid summariser.
    cached
        Calls its last argument, or returns what it returned before.

    Returns
    -------
    dict
        ``{summariser}_{version}_{metric}``, and ``{summariser}_recovered``:
        ``(filtered − noisy) / (clean − noisy)`` of ROUGE-1, None if the noise costs less than
        `MIN_ROUGE_DROP`.
    """
    n_words = round(float(np.mean([len(summary.split()) for summary in references])))
    measured: dict[str, float | None] = {}
    for label, summarise in {
        "lead": lead(n_words, unit="words"),
        "centroid": centroid(encoder, n_words, unit="words"),
    }.items():
        rouge_1 = {}
        for version, documents in texts.items():
            values = cached(version, label, lambda: rouge(summarise(documents), references))  # noqa: B023
            rouge_1[version] = values["rouge_1"] or 0.0
            measured |= {f"{label}_{version}_{metric}": v for metric, v in values.items()}
        drop = rouge_1["clean"] - rouge_1["noisy"]
        gain = rouge_1["filtered"] - rouge_1["noisy"]
        measured[f"{label}_recovered"] = gain / drop if drop > MIN_ROUGE_DROP else None
    return measured


def _sentence_lengths(scores: TextScores) -> Floats:
    """The number of tokens of each sentence, at least 1."""
    parts = [scores.text[a:b] for a, b in scores.sentences.tolist()]
    return np.array([max(1, count_tokens(part)) for part in parts], dtype=np.float64)


def _auroc(truth: Bools, scores: Floats, weights: Floats) -> float | None:
    if not truth.any() or truth.all():
        return None
    return float(roc_auc_score(truth, scores, sample_weight=weights))
