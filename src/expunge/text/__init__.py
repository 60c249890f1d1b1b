"""Noise in the input of a summariser: found and removed at inference (arXiv 2212.09928)."""

from expunge.text.encoders import HuggingFaceEncoder, TokenStates
from expunge.text.filters import TextNoiseFilter, TextScores
from expunge.text.sentences import sentences

__all__ = ["HuggingFaceEncoder", "TextNoiseFilter", "TextScores", "TokenStates", "sentences"]
