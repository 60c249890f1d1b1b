"""Noisy model learning: tuning on features of a noisily pre-trained encoder (arXiv 2309.17002)."""

from expunge.nmtune.encoders import adapt, attach, embed, without_head
from expunge.nmtune.heads import NMTune, Trial
from expunge.nmtune.objectives import PRESETS, NMTuneConfig
from expunge.nmtune.spectra import lsvr, singular_values, sve

__all__ = [
    "PRESETS",
    "NMTune",
    "NMTuneConfig",
    "Trial",
    "adapt",
    "attach",
    "embed",
    "lsvr",
    "singular_values",
    "sve",
    "without_head",
]
