"""A tiny encoder and documents for tests of text, and slow ways to compute the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from expunge.related.text.encoders import TokenStates
from expunge.rng import generator

SUBJECTS = [
    "bank",
    "market",
    "company",
    "minister",
    "team",
    "player",
    "court",
    "government",
    "group",
    "report",
]
VERBS = ["said", "rose", "fell", "won", "lost", "bought", "sold", "beat", "met", "opened"]
OBJECTS = [
    "shares",
    "profits",
    "games",
    "votes",
    "sales",
    "prices",
    "deals",
    "matches",
    "talks",
    "rights",
]
STARS = ["galaxy", "quasar", "nebula", "comet", "pulsar"]
ORBITS = ["orbits", "spirals", "radiates", "collapses", "glows"]
WIDTH = 6


def states_of(word: str) -> np.ndarray:
    """A fixed state of every word; words of the two sorts of documents lie apart."""
    state = generator(0, word.lower()).standard_normal(WIDTH)
    state[0] += 3.0 * (word.lower() in STARS + ORBITS)
    return state.astype(np.float32)


def encoder(texts: Sequence[str]) -> list[TokenStates]:
    """Words and signs as tokens; a state knows nothing of its neighbours."""
    found = []
    for text in texts:
        matches = list(re.finditer(r"\w+|[^\w\s]", text))
        states = [states_of(m[0]) for m in matches]
        offsets = np.array([m.span() for m in matches], dtype=np.int64).reshape(-1, 2)
        found.append(TokenStates(np.array(states, dtype=np.float32).reshape(-1, WIDTH), offsets))
    return found


def news(n: int, *, seed: int = 0, length: int = 6) -> list[str]:
    """Documents of simple sentences about business and sport."""
    rng = generator(seed, "news")

    def sentence() -> str:
        words = [rng.choice(w) for w in (SUBJECTS, VERBS, OBJECTS, SUBJECTS)]
        return f"The {words[0]} {words[1]} the {words[2]} of a {words[3]}."

    return [" ".join(sentence() for _ in range(length)) for _ in range(n)]


def stars(n: int, *, seed: int = 0, length: int = 6) -> list[str]:
    """Documents about the sky."""
    rng = generator(seed, "stars")

    def sentence() -> str:
        return f"Each {rng.choice(STARS)} {rng.choice(ORBITS)} near one {rng.choice(STARS)}."

    return [" ".join(sentence() for _ in range(length)) for _ in range(n)]


def slow_mahalanobis(states: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """``(z − μ)ᵀ Σ⁻¹ (z − μ)``, one state after another."""
    inverse = np.linalg.inv(covariance)
    return np.array([(z - mean) @ inverse @ (z - mean) for z in states.astype(np.float64)])


def covariance_of(basis: np.ndarray) -> np.ndarray:
    return np.linalg.inv(basis @ basis.T)
