"""The default score: how novel a sentence is, and how foreign to the domain.

Not published; docs/text.md compares it with the published scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from expunge._core.progress import Progress, silent
from expunge.errors import DataError
from expunge.text.encoders import Encoder
from expunge.text.evidence import EVIDENCE, DomainModels, Evidence, incoherence
from expunge.text.length_normaliser import LengthNormaliser

# Sentences with a larger z-score are not compared with when incoherence is measured.
OUTLIER_Z = 2.5
# Novelty and domain contrast of 1 are this quantile of those of clean sentences.
REFERENCE_QUANTILE = 0.99


@dataclass(frozen=True)
class CombinedScorer:
    """The evidence of a sentence, as z-scores at its length, combined into one score.

    ``novelty = surprisal + ½ plain⁺ + ½ token_plain⁺`` is high for unlikely characters and for
    states far from the domain. ``domain_contrast = ½ (relative + token_relative +
    relative_surprisal) + incoherence`` is high for sentences nearer to the background than to the
    domain, in states and in characters, and unlike the rest of the document. Both are scaled to 0
    at their median and 1 at their 99th percentile among clean sentences:
    ``score = √(novelty⁺² + domain_contrast⁺²)``. No weight was fitted to any kind of noise.

    Parameters
    ----------
    models
        Gaussians and n-grams of the domain and of the background.
    normalisers
        By the names in `EVIDENCE`.
    reference_quantiles
        ``float64[2]``: median and 99th percentile among clean sentences of ``novelty``,
        ``domain_contrast``, and, by token, of ``token_surprisal`` and ``token_distance``.
    """

    models: DomainModels
    normalisers: Mapping[str, LengthNormaliser]
    reference_quantiles: Mapping[str, np.ndarray]

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        in_domain: Sequence[str],
        held_out: Sequence[str],
        background: Sequence[str],
        *,
        progress: Progress = silent,
    ) -> tuple[CombinedScorer, np.ndarray]:
        """Fit the score; return it with the scores of all sentences of the held-out documents.

        Parameters
        ----------
        encoder
            A function from texts to `TokenStates`.
        in_domain, held_out
            Clean documents of the domain. The references are estimated from those held out,
            because the others are nearer to the models that were fitted to them.
        background
            Documents of general text.
        progress
            Called with the name of the step and the number of documents.

        Notes
        -----
        Cost: one encoder pass.
        """
        models = DomainModels.fit(encoder, in_domain, background, progress=progress)
        scorer = cls(models, {}, {})
        measured = []
        for number, document in enumerate(held_out):
            measured.append(models.measure(encoder, document, number=number))
            progress("measuring held-out documents", number + 1, len(held_out))
        return scorer._with_references(measured)

    def _with_references(self, measured: Sequence[Evidence]) -> tuple[CombinedScorer, np.ndarray]:
        """The score with references from clean documents, and the scores of their sentences."""
        if sum(len(e.spans) for e in measured) < 2:
            raise DataError(
                "the held-out documents have fewer than two sentences", fix="give more documents"
            )
        scorer = self
        for name, unit in EVIDENCE.items():
            if name == "incoherence":
                measured = [scorer._with_incoherence(e) for e in measured]
            values = np.concatenate([e.values[name] for e in measured])
            lengths = np.concatenate([e.lengths[unit] for e in measured])
            is_known = np.isfinite(values)
            if is_known.sum() < 2:  # every document has one sentence
                values, is_known = np.zeros(len(values)), np.ones(len(values), dtype=bool)
            normaliser = LengthNormaliser.fit(values[is_known], lengths[is_known])
            scorer = replace(scorer, normalisers={**scorer.normalisers, name: normaliser})
        parts = [scorer._novelty_and_contrast(e) for e in measured]
        values_by_name = {
            "novelty": np.concatenate([novelty for novelty, _ in parts]),
            "domain_contrast": np.concatenate([contrast for _, contrast in parts]),
            "token_surprisal": np.concatenate([e.token_surprisal for e in measured]),
            "token_distance": np.concatenate([e.token_distance for e in measured]),
        }
        quantiles = {
            k: np.quantile(v, [0.5, REFERENCE_QUANTILE])
            for k, v in values_by_name.items()
            if len(v)
        }
        scorer = replace(scorer, reference_quantiles=quantiles)
        return scorer, np.concatenate([scorer.combine(e)[0] for e in measured])

    def score(
        self, encoder: Encoder, document: str, *, number: int = 0
    ) -> tuple[Evidence, np.ndarray, np.ndarray]:
        """Score a document: evidence, scores ``float64[s]``, token scores ``float64[t]``."""
        evidence = self._with_incoherence(self.models.measure(encoder, document, number=number))
        return evidence, *self.combine(evidence)

    def combine(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Combine the evidence into scores of sentences, and of tokens.

        The score of a token depends on its own characters and state alone.
        """
        novelty, contrast = self._novelty_and_contrast(evidence)
        by_sentence = np.hypot(
            self._scaled("novelty", novelty), self._scaled("domain_contrast", contrast)
        )
        by_token = np.hypot(
            self._scaled("token_surprisal", evidence.token_surprisal),
            self._scaled("token_distance", evidence.token_distance),
        )
        return by_sentence, by_token

    def _with_incoherence(self, evidence: Evidence) -> Evidence:
        """Compare every sentence with those that are no outliers by the other evidence."""
        z = self._z_scores(evidence)
        is_outlier = (z["surprisal"] > OUTLIER_Z) | (_contrast(z) > OUTLIER_Z)
        values = {**evidence.values, "incoherence": incoherence(evidence.means, is_outlier)}
        return replace(evidence, values=values)

    def _z_scores(self, evidence: Evidence) -> dict[str, np.ndarray]:
        """The evidence as z-scores; 0 where it cannot be measured."""
        found = {}
        for name, values in evidence.values.items():
            if name in self.normalisers:
                z = self.normalisers[name].z_scores(values, evidence.lengths[EVIDENCE[name]])
                found[name] = np.where(np.isnan(values), 0.0, z)
        return found

    def _novelty_and_contrast(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """``float64[s]`` each, not yet scaled."""
        z = self._z_scores(evidence)
        distance = np.maximum(z["plain"], 0) + np.maximum(z["token_plain"], 0)
        return z["surprisal"] + distance / 2, _contrast(z) + z["incoherence"]

    def _scaled(self, name: str, values: np.ndarray) -> np.ndarray:
        """0 up to the median of clean sentences, 1 at their 99th percentile."""
        if name not in self.reference_quantiles:  # no clean document has a token
            return np.zeros(len(values))
        median, high = self.reference_quantiles[name]
        return np.asarray(np.maximum(values - median, 0) / max(high - median, 1e-9))

    def tensors(self) -> dict[str, np.ndarray]:
        """All numbers by name."""
        found = {f"quantiles.{k}": v for k, v in self.reference_quantiles.items()}
        found |= {f"models.{k}": v for k, v in self.models.tensors().items()}
        for name, normaliser in self.normalisers.items():
            found |= {f"normaliser.{name}.{k}": v for k, v in vars(normaliser).items()}
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> CombinedScorer:
        """The reverse of `tensors`."""

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        return cls(
            DomainModels.from_tensors(under("models.")),
            {name: LengthNormaliser(**under(f"normaliser.{name}.")) for name in EVIDENCE},
            under("quantiles."),
        )


def _contrast(z: Mapping[str, np.ndarray]) -> np.ndarray:
    """How much nearer the background is than the domain, in states and characters."""
    return np.asarray((z["relative"] + z["token_relative"] + z["relative_surprisal"]) / 2)
