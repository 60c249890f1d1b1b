"""Find the sentences of a document that do not belong there, and remove them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from expunge._core.progress import Progress, silent
from expunge._core.rng import generator
from expunge.config import build
from expunge.errors import ConfigError, DataError, ModelError
from expunge.text.combined import Combined
from expunge.text.encoders import Encoder, HuggingFaceEncoder, checked, encoded
from expunge.text.published import Distances, Granularity, read
from expunge.text.sentences import kept_text, sentences

Kind = Literal["combined", "relative", "plain"]

NUMBERS, SETTINGS, VERSION = "filter.safetensors", "filter.json", 1
# Part of the in-domain documents that nothing is fitted on but what is usual, and the threshold.
HELD_OUT = 0.2
# Fewer documents than this say little about a domain.
FEWEST = 10
# By this text a filter knows the encoder that it was fitted with.
PROBE = "The filter was fitted with the states of this encoder, number 1."


@dataclass(frozen=True)
class TextScores:
    """How little every sentence and token of a document belongs there; higher is worse.

    sentences: ``int64[s, 2]``, start and end as offsets into ``text``. scores: ``float64[s]``.
    tokens: ``int64[t, 2]``. token_scores: ``float64[t]``, of the token itself (see the kind of
    score), on another scale. threshold: sentences with a higher score are noise.
    evidence: ``float64[s]`` by name, what the combined score was made of, NaN where there was
    nothing to measure; empty for others.
    """

    text: str
    sentences: np.ndarray
    scores: np.ndarray
    tokens: np.ndarray
    token_scores: np.ndarray
    threshold: float
    evidence: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def noise(self) -> np.ndarray:
        """``bool[s]``: the sentences that are removed."""
        return self.scores > self.threshold

    @property
    def cleaned(self) -> str:
        """The text without them, all else byte for byte as it was; empty if all is noise."""
        return kept_text(self.text, self.sentences, self.noise)


@dataclass(frozen=True)
class FilterConfig:
    """kind: of score. granularity: of the published scores. quantile: of the scores of clean
    in-domain sentences, above which a sentence is noise (published: 0.99).
    """

    kind: Kind = "combined"
    granularity: Granularity = "sentence"
    quantile: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigError(f"the quantile must lie in (0, 1), not {self.quantile}")
        if self.kind not in get_args(Kind) or self.granularity not in get_args(Granularity):
            raise ConfigError(
                f"there is no score '{self.kind}' by '{self.granularity}'",
                fix=f"{', '.join(get_args(Kind))}; {', '.join(get_args(Granularity))}",
            )
        if self.kind == "combined" and self.granularity != "sentence":
            raise ConfigError(
                f"the combined score goes by sentence, not by {self.granularity}",
                fix="kind='relative' or kind='plain'",
            )


@dataclass(frozen=True)
class TextNoiseFilter:
    """Detects and removes noise in documents, without knowing its kind and without training.

    After arXiv 2212.09928. ``combined`` is our default score; ``relative`` is the published one,
    ``plain`` the same without a background (`Combined`, `Distances`).

    >>> filter = TextNoiseFilter.fit(articles, others, encoder=encoder)  # doctest: +SKIP
    >>> filter.clean("Shares rose on Monday. 🎉🎉 x = f(y)")  # doctest: +SKIP
    """

    encoder: Encoder
    config: FilterConfig
    scorer: Combined | Distances
    # Scores of clean held-out sentences, ascending, for each kind and granularity of the scorer.
    usual: Mapping[str, np.ndarray]
    probe: np.ndarray

    @classmethod
    def fit(
        cls,
        in_domain_documents: Sequence[str],
        background_documents: Sequence[str],
        *,
        encoder: Encoder,
        kind: Kind = "combined",
        granularity: Granularity = "sentence",
        quantile: float = 0.99,
        seed: int = 0,
        progress: Progress = silent,
    ) -> TextNoiseFilter:
        """Learn what clean documents of the domain are like, and what others are.

        in_domain_documents: clean, ten or more; a fifth of them, drawn by the seed, is held out for
        the threshold. background_documents: general text, two or more, none of it in the domain.
        Documents without a visible character are left out. encoder: any function of texts to
        `TokenStates`; with a `HuggingFaceEncoder` the saved filter can find it again.

        DataError for too few documents and for what is no text. Cost: one encoder pass.
        """
        config = FilterConfig(kind, granularity, quantile)
        inside = _with_sentences(in_domain_documents, "in-domain documents", FEWEST)
        background = _with_sentences(background_documents, "background documents", 2)
        order = generator(seed, "text filter", "held out").permutation(len(inside))
        apart = max(2, round(HELD_OUT * len(inside)))
        held_out, inside = (
            [inside[i] for i in np.sort(rows)] for rows in (order[:apart], order[apart:])
        )
        probe = _probe(encoder)
        if config.kind == "combined":
            combined, usual = Combined.fit(encoder, inside, held_out, background, progress=progress)
            return cls(encoder, config, combined, {_name(config): np.sort(usual)}, probe)
        distances = Distances.fit(encoder, inside, background, progress=progress)
        return cls(encoder, config, distances, _usual(distances, encoder, held_out), probe)

    def using(
        self,
        *,
        kind: Kind | None = None,
        granularity: Granularity | None = None,
        quantile: float | None = None,
    ) -> TextNoiseFilter:
        """The same filter with another threshold, or another of the scores that it was fitted for.

        A filter fitted for ``relative`` has ``plain`` too, at all granularities.
        """
        own = self.config
        config = FilterConfig(
            kind or own.kind,
            granularity or own.granularity,
            own.quantile if quantile is None else quantile,
        )
        if _name(config) not in self.usual:
            raise ConfigError(
                f"the filter was not fitted for '{config.kind}' but for {', '.join(self.usual)}",
                fix=f"fit another one with kind='{config.kind}'",
            )
        return replace(self, config=config)

    @property
    def threshold(self) -> float:
        """The score above which a sentence is noise."""
        return float(np.quantile(self.usual[_name(self.config)], self.config.quantile))

    def score(self, document: str) -> TextScores:
        """Scores of the sentences and tokens of one document.

        A document without a visible character has neither. DataError for what is no text,
        ModelError if the encoder gives no numbers. Cost: one encoder pass.
        """
        return self.score_all([document])[0]

    def score_all(self, documents: Sequence[str]) -> list[TextScores]:
        """Scores of several documents, in their order; long ones cost no more than short ones."""
        texts = checked(documents, what="documents")
        found = {i: self._empty(t) for i, t in enumerate(texts) if not len(sentences(t))}
        left = [i for i in range(len(texts)) if i not in found]
        if isinstance(self.scorer, Combined):
            for i in left:
                evidence, by_sentence, by_token = self.scorer.scored(
                    self.encoder, texts[i], number=i
                )
                found[i] = TextScores(
                    texts[i],
                    evidence.spans,
                    by_sentence,
                    evidence.tokens,
                    by_token,
                    self.threshold,
                    evidence.values,
                )
        else:
            states = encoded(self.encoder, [texts[i] for i in left])
            for i, tokens in zip(left, states, strict=True):
                parts, by_sentence, by_token = self.scorer.scores(
                    texts[i],
                    tokens,
                    distance="plain" if self.config.kind == "plain" else "relative",
                    granularity=self.config.granularity,
                )
                offsets = tokens.offsets[: len(parts.of)]
                found[i] = TextScores(
                    texts[i], parts.spans, by_sentence, offsets, by_token, self.threshold
                )
        return [found[i] for i in range(len(texts))]

    def clean(self, document: str) -> str:
        """The document without its noise: every kept sentence byte for byte as it was.

        Empty if all is noise, the very same if nothing is. Raises as `score` does.
        """
        return self.score(document).cleaned

    def save(self, folder: str | Path) -> None:
        """Write ``filter.safetensors`` and ``filter.json`` into a folder, made if it is not there.

        The encoder is not saved but its name, and by what it can be known again.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {f"scorer.{k}": v for k, v in self.scorer.tensors().items()}
        numbers |= {f"usual.{k}": v for k, v in self.usual.items()}
        numbers["probe"] = self.probe
        save_file({k: np.ascontiguousarray(v) for k, v in numbers.items()}, folder / NUMBERS)
        known = isinstance(self.encoder, HuggingFaceEncoder)
        name = self.encoder.name if isinstance(self.encoder, HuggingFaceEncoder) else ""
        window = self.encoder.window if isinstance(self.encoder, HuggingFaceEncoder) else None
        facts = {"version": VERSION, "encoder": name if known else "", "window": window}
        text = json.dumps({**facts, "config": asdict(self.config)}, indent=2)
        (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, folder: str | Path, *, encoder: Encoder | None = None, device: str = "cpu"
    ) -> TextNoiseFilter:
        """A filter as it was saved.

        encoder: the one that it was fitted with; by default the one of the name that was saved.
        ModelError for a folder without a filter, a damaged one, and another encoder.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            numbers = load_file(folder / NUMBERS)
            version, name, window = facts["version"], facts["encoder"], facts["window"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"holds no filter: {error}", where=str(folder), fix="`expunge text fit`"
            ) from error
        if version != VERSION:
            raise ModelError(f"the filter is of version {version}", where=str(folder), fix="fit it")
        config = build(FilterConfig, facts["config"], where=str(folder / SETTINGS))
        if encoder is None:
            if not name:
                raise ModelError(
                    "the filter was fitted with an encoder of your own",
                    where=str(folder),
                    fix="give it: encoder=…",
                )
            encoder = HuggingFaceEncoder.of(name, device=device, window=window)
        _same_encoder(encoder, numbers["probe"], str(folder))
        parts = {
            k.removeprefix("scorer."): v for k, v in numbers.items() if k.startswith("scorer.")
        }
        scorer = (Combined if config.kind == "combined" else Distances).of(parts)
        usual = {k.removeprefix("usual."): v for k, v in numbers.items() if k.startswith("usual.")}
        return cls(encoder, config, scorer, usual, numbers["probe"])

    def _empty(self, text: str) -> TextScores:
        nothing, nowhere = np.zeros(0), np.zeros((0, 2), dtype=np.int64)
        return TextScores(text, nowhere, nothing, nowhere, nothing, self.threshold)


def _name(config: FilterConfig) -> str:
    return f"{config.kind}/{config.granularity}"


def _usual(
    distances: Distances, encoder: Encoder, documents: Sequence[str]
) -> dict[str, np.ndarray]:
    """Scores of clean sentences, ascending, by kind and granularity."""
    found: dict[str, list[np.ndarray]] = {}
    for document, tokens in read(encoder, documents):
        for kind in ("relative", "plain"):
            for granularity in get_args(Granularity):
                name = _name(FilterConfig(kind, granularity))
                scores = distances.scores(document, tokens, distance=kind, granularity=granularity)[
                    1
                ]
                found.setdefault(name, []).append(scores)
    return {name: np.sort(np.concatenate(scores)) for name, scores in found.items()}


def _with_sentences(documents: Sequence[str], what: str, fewest: int) -> list[str]:
    found = [d for d in checked(documents, what=what) if len(sentences(d))]
    if len(found) < fewest:
        raise DataError(
            f"{fewest} {what} or more are needed, not {len(found)}",
            fix="a text file is one document, unless it is read by lines",
        )
    return found


def _probe(encoder: Encoder) -> np.ndarray:
    states = encoded(encoder, [PROBE])[0].states
    if not len(states):
        raise ModelError("the encoder finds no tokens in a plain sentence", where="encoder")
    return states.mean(axis=0, dtype=np.float64)


def _same_encoder(encoder: Encoder, probe: np.ndarray, where: str) -> None:
    own = _probe(encoder)
    if own.shape == probe.shape:
        away = float(np.linalg.norm(own - probe) / max(float(np.linalg.norm(probe)), 1e-12))
        if away < 0.01:  # devices and precisions differ less
            return
    raise ModelError(
        "this is not the encoder that the filter was fitted with: its states are others",
        where=where,
        fix="load that encoder, or fit the filter again",
    )
