"""The default score: how strange a sentence is, and how foreign. Not published; see docs/text.md.

Every sentence is encoded alone: in the context of its document the states of a stray sentence take
on what stands around it, which hides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from expunge._core.progress import Progress, silent
from expunge.errors import DataError
from expunge.text.characters import CharacterModel
from expunge.text.encoders import Encoder, encoded_alone
from expunge.text.gaussians import Gaussian
from expunge.text.sentences import sentences
from expunge.text.standards import Standard
from expunge.text.states import grouped

# Evidence by sentence, and whether its length is counted in characters, or in tokens.
EVIDENCE = {
    "relative": "tokens",
    "plain": "tokens",
    "token_relative": "tokens",
    "token_plain": "tokens",
    "surprise": "characters",
    "relative_surprise": "characters",
    "incoherence": "tokens",
}
GAUSSIANS = ("sentence", "sentence_background", "token", "token_background")
# Tokens that a Gaussian of tokens is fitted on, about; a document gives some of its own, evenly
# spread over it.
TOKENS, FEWEST, MOST = 100_000, 8, 64
# Sentences that are encoded at once, so that memory does not grow with the document, and how far
# before and behind them others count as near.
BLOCK = 256
# A sentence's nearest others that it is compared with.
NEAREST = 3
# From so many spreads on, a sentence says nothing about what its document is about.
SUSPECT = 2.5
# The part of clean sentences that strangeness and foreignness of 1 leave below them.
USUAL = 0.99


@dataclass(frozen=True)
class Evidence:
    """What is known of one document with sentences.

    spans: ``int64[s, 2]``. values: by name, ``float64[s]``. lengths: tokens and characters of every
    sentence, ``int64[s]``. tokens: ``int64[t, 2]``. token_surprise, token_distance: ``float64[t]``.
    means: ``float32[s, d]``, less the in-domain mean.
    """

    spans: np.ndarray
    values: Mapping[str, np.ndarray]
    lengths: Mapping[str, np.ndarray]
    tokens: np.ndarray
    token_surprise: np.ndarray
    token_distance: np.ndarray
    means: np.ndarray


@dataclass(frozen=True)
class Combined:
    """Evidence, each in the spreads usual at a sentence's length (`Standard`), made one score.

    strange: ``surprise + ½ plain⁺ + ½ token_plain⁺``: unlikely characters, and far from in-domain
    states. foreign: ``½ (relative + token_relative + relative_surprise) + incoherence``: nearer the
    background than the domain, in states and in characters, and far from the rest of the document.
    Both in units of their 99th percentile among clean sentences, above their middle:
    ``score = √(strange⁺² + foreign⁺²)``. No weight was fitted to any kind of noise.
    """

    gaussians: Mapping[str, Gaussian]
    characters: CharacterModel
    characters_background: CharacterModel
    standards: Mapping[str, Standard]
    # Middle and 99th percentile of strange, foreign, and of the evidence by token.
    scales: Mapping[str, np.ndarray]

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        inside: Sequence[str],
        held_out: Sequence[str],
        background: Sequence[str],
        *,
        progress: Progress = silent,
    ) -> tuple[Combined, np.ndarray]:
        """The score, and the scores of all sentences in the held-out documents.

        inside, held_out: clean in-domain documents; what is usual is measured on those held out,
        because what the Gaussians and n-grams were fitted on lies nearer to them. One encoder pass.
        """
        gaussians = {}
        for name, documents in {"": inside, "_background": background}.items():
            what = f"reading {'background' if name else 'in-domain'} documents"
            means, tokens = _read(encoder, documents, what, progress)
            gaussians[f"sentence{name}"] = Gaussian.fit(means)
            gaussians[f"token{name}"] = Gaussian.fit(tokens)
        models = CharacterModel.fit(inside), CharacterModel.fit(background)
        bare = cls(gaussians, *models, {}, {})
        found = []
        for number, document in enumerate(held_out):
            found.append(bare.evidence(encoder, document, number=number))
            progress("measuring what is usual", number + 1, len(held_out))
        return bare._standardised(found)

    def _standardised(self, found: Sequence[Evidence]) -> tuple[Combined, np.ndarray]:
        """The score with what is usual in these clean documents, and their scores by it."""
        if sum(len(e.spans) for e in found) < 2:
            raise DataError("the documents held out have less than two sentences", fix="give more")
        standards: dict[str, Standard] = {}
        made = self
        for name, unit in EVIDENCE.items():
            if name == "incoherence":
                found = [made._with_incoherence(e) for e in found]
            values = np.concatenate([e.values[name] for e in found])
            lengths = np.concatenate([e.lengths[unit] for e in found])
            known = np.isfinite(values)
            if known.sum() < 2:  # every document has one sentence
                values, known = np.zeros(len(values)), np.ones(len(values), dtype=bool)
            standards[name] = Standard.fit(values[known], lengths[known])
            made = replace(made, standards=dict(standards))
        columns = [made._parts(e) for e in found]
        parts = {
            "strange": np.concatenate([c[0] for c in columns]),
            "foreign": np.concatenate([c[1] for c in columns]),
            "token_surprise": np.concatenate([e.token_surprise for e in found]),
            "token_distance": np.concatenate([e.token_distance for e in found]),
        }
        scales = {k: np.quantile(v, [0.5, USUAL]) for k, v in parts.items() if len(v)}
        made = replace(made, scales=scales)
        return made, np.concatenate([made.combine(e)[0] for e in found])

    def scored(
        self, encoder: Encoder, document: str, *, number: int = 0
    ) -> tuple[Evidence, np.ndarray, np.ndarray]:
        """Evidence, scores of sentences ``float64[s]`` and of tokens ``float64[t]``."""
        evidence = self._with_incoherence(self.evidence(encoder, document, number=number))
        return evidence, *self.combine(evidence)

    def combine(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Scores of sentences, and of tokens by their own characters and states alone."""
        strange, foreign = self._parts(evidence)
        by_sentence = np.hypot(self._scaled("strange", strange), self._scaled("foreign", foreign))
        by_token = np.hypot(
            self._scaled("token_surprise", evidence.token_surprise),
            self._scaled("token_distance", evidence.token_distance),
        )
        return by_sentence, by_token

    def evidence(self, encoder: Encoder, document: str, *, number: int = 0) -> Evidence:
        """What is known of each sentence alone; `scored` compares it with the others too.

        Of a sentence without tokens the characters alone speak: its other evidence is NaN.
        Cost: one encoder pass over every sentence, and d² a token.
        """
        spans = sentences(document)
        surprise = _total(self.characters.surprise(document))
        other = _total(self.characters_background.surprise(document))
        blocks = [
            self._block(encoder, document, spans[i : i + BLOCK], number)
            for i in range(0, len(spans), BLOCK)
        ]
        found = {k: np.concatenate([b[k] for b in blocks]) for k in blocks[0]}
        length = np.maximum(spans[:, 1] - spans[:, 0], 1)
        own = _between(surprise, spans) / length
        tokens = found["tokens"]
        values = {k: found[k] for k in ("relative", "plain", "token_relative", "token_plain")}
        values |= {"surprise": own, "relative_surprise": own - _between(other, spans) / length}
        return Evidence(
            spans,
            values,
            {"tokens": found["counts"], "characters": length},
            tokens,
            _between(surprise, tokens) / np.maximum(tokens[:, 1] - tokens[:, 0], 1),
            found["distance"],
            found["means"],
        )

    def _block(
        self, encoder: Encoder, document: str, spans: np.ndarray, number: int
    ) -> dict[str, np.ndarray]:
        """The evidence that states give about some sentences."""
        tokens = encoded_alone(encoder, document, spans, number=number)
        parts = grouped(spans, tokens)
        sentence = self.gaussians["sentence"]
        heard = parts.counts > 0
        means = np.where(heard[:, None], parts.means, sentence.mean)
        near = sentence.distance(means)
        states = tokens.states[: len(parts.of)]
        own = self.gaussians["token"].distance(states)
        other = self.gaussians["token_background"].distance(states)
        values = {
            "relative": near - self.gaussians["sentence_background"].distance(means),
            "plain": near,
            "token_relative": parts.averages(own - other),
            "token_plain": parts.averages(own),
        }
        return {
            **{name: np.where(heard, value, np.nan) for name, value in values.items()},
            "counts": parts.counts,
            "means": (means - sentence.mean).astype(np.float32),
            "tokens": tokens.offsets[: len(parts.of)],
            "distance": own,
        }

    def _with_incoherence(self, evidence: Evidence) -> Evidence:
        """Compare every sentence with those that nothing else speaks against."""
        z = self._standard(evidence)
        doubtful = (z["surprise"] > SUSPECT) | (_contrast(z) > SUSPECT)
        values = {**evidence.values, "incoherence": incoherence(evidence.means, doubtful)}
        return replace(evidence, values=values)

    def _standard(self, evidence: Evidence) -> dict[str, np.ndarray]:
        """Every piece of evidence in spreads; 0 where there was nothing to compare with."""
        found = {}
        for name, values in evidence.values.items():
            if name in self.standards:
                z = self.standards[name].of(values, evidence.lengths[EVIDENCE[name]])
                found[name] = np.where(np.isnan(values), 0.0, z)
        return found

    def _parts(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Strange and foreign, ``float64[s]`` each."""
        z = self._standard(evidence)
        far = np.maximum(z["plain"], 0) + np.maximum(z["token_plain"], 0)
        return z["surprise"] + far / 2, _contrast(z) + z["incoherence"]

    def _scaled(self, name: str, values: np.ndarray) -> np.ndarray:
        if name not in self.scales:  # no clean document had a token
            return np.zeros(len(values))
        middle, usual = self.scales[name]
        return np.maximum(values - middle, 0) / max(usual - middle, 1e-9)

    def tensors(self) -> dict[str, np.ndarray]:
        """All numbers by name."""
        found = {f"scale.{k}": v for k, v in self.scales.items()}
        for name in GAUSSIANS:
            found |= {f"{name}.{k}": v for k, v in vars(self.gaussians[name]).items()}
        for name, standard in self.standards.items():
            found |= {f"standard.{name}.{k}": v for k, v in vars(standard).items()}
        found["characters"] = self.characters.counts
        found["characters_background"] = self.characters_background.counts
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> Combined:
        """The reverse of `tensors`."""
        fields = Standard.__dataclass_fields__
        return cls(
            {n: Gaussian(tensors[f"{n}.mean"], tensors[f"{n}.basis"]) for n in GAUSSIANS},
            CharacterModel(tensors["characters"]),
            CharacterModel(tensors["characters_background"]),
            {n: Standard(**{f: tensors[f"standard.{n}.{f}"] for f in fields}) for n in EVIDENCE},
            {k.removeprefix("scale."): v for k, v in tensors.items() if k.startswith("scale.")},
        )


def incoherence(means: np.ndarray, doubtful: np.ndarray) -> np.ndarray:
    """Minus the mean cosine of a sentence to the three others that are most like it.

    means: ``float[s, d]`` centred states of the sentences in their order. doubtful: ``bool[s]``,
    sentences that no other is compared with. Others are near: in a block of 256 sentences, or up
    to as many before and behind it. NaN if there is no other, and for a
    mean of zero, which says nothing. Cost: 768 d a sentence.
    """
    length = np.linalg.norm(means, axis=1, keepdims=True)
    z = means.astype(np.float64) / np.maximum(length, 1e-12)
    mute = length[:, 0] == 0
    found = np.zeros(len(z))
    for start in range(0, len(z), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(z)))
        others = np.arange(max(0, start - BLOCK), min(rows[-1] + 1 + BLOCK, len(z)))
        others = others[~(doubtful | mute)[others]]
        cosine = z[rows] @ z[others].T
        cosine[rows[:, None] == others] = -np.inf
        top = -np.sort(-cosine, axis=1)[:, :NEAREST]
        known = np.isfinite(top)
        count = known.sum(axis=1)
        sums = np.where(known, top, 0).sum(axis=1)
        found[rows] = np.where((count > 0) & ~mute[rows], -sums / np.maximum(count, 1), np.nan)
    return found


def _contrast(z: Mapping[str, np.ndarray]) -> np.ndarray:
    return (z["relative"] + z["token_relative"] + z["relative_surprise"]) / 2


def _read(
    encoder: Encoder, documents: Sequence[str], what: str, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Mean states of all sentences, and states of some tokens of every document."""
    means, tokens = [], []
    each = min(MOST, max(FEWEST, TOKENS // len(documents)))
    for number, document in enumerate(documents):
        spans = sentences(document)
        for i in range(0, len(spans), BLOCK):
            block = spans[i : i + BLOCK]
            found = encoded_alone(encoder, document, block, number=number)
            parts = grouped(block, found)
            means.append(parts.means[parts.counts > 0])
            tokens.append(_thinned(found.states, each))
        progress(what, number + 1, len(documents))
    if sum(map(len, means)) < 2:
        raise DataError(f"less than two sentences with tokens ({what})", fix="give more documents")
    return np.concatenate(means), np.concatenate(tokens)


def _thinned(states: np.ndarray, n: int) -> np.ndarray:
    if len(states) <= n:
        return states
    return states[np.linspace(0, len(states) - 1, n).astype(np.int64)]


def _total(values: np.ndarray) -> np.ndarray:
    return np.r_[0.0, np.cumsum(values)]


def _between(total: np.ndarray, spans: np.ndarray) -> np.ndarray:
    return total[spans[:, 1]] - total[spans[:, 0]]
