"""Noise in the input of a summariser: detected and removed at inference (arXiv 2212.09928)."""

from expunge.text.encoders import Encoder, HuggingFaceEncoder, TokenStates
from expunge.text.filters import TextNoiseFilter
from expunge.text.scores import FilterConfig, TextScores
from expunge.text.sentences import remove_sentences, split_sentences

__all__ = [
    "Encoder",
    "FilterConfig",
    "HuggingFaceEncoder",
    "TextNoiseFilter",
    "TextScores",
    "TokenStates",
    "remove_sentences",
    "split_sentences",
]
