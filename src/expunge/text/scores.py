"""What a text filter returns, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from expunge.errors import ConfigError, check_range
from expunge.text.published import Granularity
from expunge.text.sentences import remove_sentences

ScoreKind = Literal["combined", "relative", "plain"]


@dataclass(frozen=True)
class TextScores:
    """Scores of the sentences and tokens of one document; higher is more likely noise.

    Parameters
    ----------
    text
        The document.
    sentences
        ``int64[s, 2]``: start and end of every sentence, as offsets into ``text``.
    scores
        ``float64[s]``.
    tokens
        ``int64[t, 2]``: start and end of every token.
    token_scores
        ``float64[t]``: of the token itself, on another scale than the scores of sentences.
    threshold
        Sentences with a higher score are noise.
    evidence
        ``float64[s]`` by name: the parts of the combined score, NaN where they cannot be measured.
        Empty for other scores.

    Examples
    --------
    >>> spans = np.array([[0, 4], [5, 9]])
    >>> none = np.zeros((0, 2), dtype=np.int64), np.zeros(0)
    >>> found = TextScores("One. Two.", spans, np.array([0.1, 3.0]), *none, threshold=1.0)
    >>> found.is_noise.tolist(), found.cleaned
    ([False, True], 'One.')
    """

    text: str
    sentences: np.ndarray
    scores: np.ndarray
    tokens: np.ndarray
    token_scores: np.ndarray
    threshold: float
    evidence: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def is_noise(self) -> np.ndarray:
        """``bool[s]``: the sentences with a score above the threshold."""
        return np.asarray(self.scores > self.threshold)

    @property
    def cleaned(self) -> str:
        """The text without its noise, otherwise unchanged; empty if all sentences are noise."""
        return remove_sentences(self.text, self.sentences, self.is_noise)


@dataclass(frozen=True)
class FilterConfig:
    """The settings of a text filter.

    Parameters
    ----------
    kind
        The score: ``"combined"`` (default), ``"relative"`` (arXiv 2212.09928) or ``"plain"`` (the
        same without a background).
    granularity
        What a published score is computed for; see `MahalanobisScorer`.
    quantile
        A sentence is noise if its score is above this quantile, in (0, 1), of the scores of clean
        in-domain sentences. Published: 0.99.

    Raises
    ------
    ConfigError
        If the quantile is out of range, or there is no such score.
    """

    kind: ScoreKind = "combined"
    granularity: Granularity = "sentence"
    quantile: float = 0.99

    def __post_init__(self) -> None:
        check_range(ConfigError, {"quantile": (self.quantile, "(0, 1)")}, where="text filter")
        if self.kind not in get_args(ScoreKind) or self.granularity not in get_args(Granularity):
            raise ConfigError(
                f"there is no score '{self.kind}' by '{self.granularity}'",
                fix=f"{', '.join(get_args(ScoreKind))}; {', '.join(get_args(Granularity))}",
            )
        if self.kind == "combined" and self.granularity != "sentence":
            raise ConfigError(
                f"the combined score is computed by sentence, not by {self.granularity}",
                fix="kind='relative' or kind='plain'",
            )

    @property
    def score_name(self) -> str:
        """``"kind/granularity"``: the key of the reference scores."""
        return f"{self.kind}/{self.granularity}"
