"""`expunge bench nmtune`: heads tuned on encoders that were pre-trained with wrong labels."""

from expunge_bench.nmtune.features import Sizes
from expunge_bench.nmtune.images import DEFAULT_RATES
from expunge_bench.nmtune.sources import DEFAULT_ARTICLES, find_sources
from expunge_bench.nmtune.suite import DEFAULT_METHODS, bench

__all__ = [
    "DEFAULT_ARTICLES",
    "DEFAULT_METHODS",
    "DEFAULT_RATES",
    "Sizes",
    "bench",
    "find_sources",
]
