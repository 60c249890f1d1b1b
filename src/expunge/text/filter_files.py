"""A text filter in a folder: its numbers, its settings, and what identifies its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.config import build
from expunge.errors import ModelError
from expunge.storage.array_files import read_tensors, save_tensors
from expunge.storage.atomic_files import make_folder
from expunge.storage.reading import reading
from expunge.text.encoders import Encoder, HuggingFaceEncoder, encode_texts
from expunge.text.scores import FilterConfig

FILTER_FILE, FORMAT_VERSION = "filter.safetensors", 3
# The mean state of this text identifies the encoder that a filter was fitted with.
PROBE_TEXT = "The filter was fitted with the states of this encoder, number 1."
# Relative distance between two probes of one encoder, at most: devices and precisions differ less.
MAX_PROBE_DISTANCE = 0.01
_FIX = "run `expunge text fit` again"


def save(
    folder: Path, *, encoder: Encoder, config: FilterConfig, tensors: Mapping[str, np.ndarray]
) -> None:
    """Write the tensors and the settings to one file."""
    settings: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "encoder": "",
        "window": None,
        "config": asdict(config),
    }
    if isinstance(encoder, HuggingFaceEncoder):
        settings |= {"encoder": encoder.name, "window": encoder.window}
    make_folder(folder)
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}
    save_tensors(folder / FILTER_FILE, state, settings)


def load(
    folder: Path, encoder: Encoder | None, *, device: str
) -> tuple[FilterConfig, dict[str, np.ndarray], Encoder]:
    """Read settings and tensors; find the encoder by its name, or check the one given."""
    where = str(folder / FILTER_FILE)
    state, settings = read_tensors(folder / FILTER_FILE, error=ModelError, fix=_FIX)
    version = settings.get("version")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"filter format {version}, this version reads {FORMAT_VERSION}", where=where, fix=_FIX
        )
    with reading(where, ModelError, what="the filter is damaged", fix=_FIX):
        tensors = {k: v.numpy() for k, v in state.items()}
        name, window = settings["encoder"], settings["window"]
        probe = tensors["probe"]
        config = build(FilterConfig, settings["config"], where=where)
    if encoder is None:
        if not name:
            raise ModelError(
                "the filter was fitted with an encoder of your own",
                where=where,
                fix="pass it: encoder=…",
            )
        encoder = HuggingFaceEncoder.from_pretrained(name, device=device, window=window)
    _check_encoder(encoder, probe, where)
    return config, tensors, encoder


def encoder_probe(encoder: Encoder) -> np.ndarray:
    """The mean state of a fixed text, ``float64[d]``."""
    states = encode_texts(encoder, [PROBE_TEXT])[0].states
    if not len(states):
        raise ModelError("the encoder returns no tokens for a plain sentence", where="encoder")
    return np.asarray(states.mean(axis=0, dtype=np.float64))


def with_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors of which the name has this prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _check_encoder(encoder: Encoder, probe: np.ndarray, where: str) -> None:
    found = encoder_probe(encoder)
    if found.shape == probe.shape:
        scale = max(float(np.linalg.norm(probe)), 1e-12)
        if float(np.linalg.norm(found - probe)) / scale < MAX_PROBE_DISTANCE:
            return
    raise ModelError(
        "this is not the encoder that the filter was fitted with: its states differ",
        where=where,
        fix="load that encoder, or fit the filter again",
    )
