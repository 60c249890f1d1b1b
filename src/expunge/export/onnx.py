"""A model as an ONNX file with its preparation and features, and a check of its logits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Batch, Preparation, Samples
from expunge.data.inputs import is_ragged
from expunge.errors import ModelError, extra_required
from expunge.models.calls import eval_mode, logits_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The names in the file.
INPUT, OUTPUT = "input", "logits"


@dataclass(frozen=True)
class Parity:
    """The difference between an ONNX file's logits and the model's on real samples.

    Parameters
    ----------
    n_samples
        Number of samples.
    max_difference
        The largest absolute difference of a logit.
    agreement
        Fraction of equal predictions.
    """

    n_samples: int
    max_difference: float
    agreement: float


class PreparedModel(nn.Module):
    """The preparation and the model in one: scaled inputs ``float[b, …]``, or inputs by name, to
    logits."""

    def __init__(self, model: nn.Module, prepare: Preparation) -> None:
        super().__init__()
        self.model, self._prepare = model, prepare

    def forward(self, x: Batch) -> Tensor:
        return logits_of(self.model, x if isinstance(x, dict) else self._prepare(x))


def require_onnx() -> None:
    """Raise for the first package that ONNX files need and that is not installed."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise extra_required(package, "onnx")


def write_graph(model: nn.Module, samples: Samples, file: Path) -> None:
    """Write a model with the samples' preparation as ONNX: scaled inputs to logits.

    The input is ``float32[b, …]`` for any b, pixels in [0, 1] and audio in [−1, 1). Mean, std and
    the features that the model computes are part of the graph. Several inputs have their names;
    token ids have any length.

    Parameters
    ----------
    model
        The classifier.
    samples
        One or more.
    file
        Written or overwritten.

    Raises
    ------
    ConfigError
        If a package for ONNX is not installed.
    ModelError
        For a model that torch cannot trace.

    Notes
    -----
    Cost: one trace, some seconds.
    """
    require_onnx()
    scaled = _scaled(samples, np.arange(min(2, len(samples))))
    names = [INPUT] if isinstance(scaled, Tensor) else list(scaled)
    prepared = PreparedModel(model, samples.prepare)
    try:
        with _quiet(), eval_mode(prepared):
            program = torch.onnx.export(
                prepared,
                (scaled, {}),  # a dictionary at the end would be taken as keyword arguments
                dynamo=True,
                dynamic_shapes=(_dynamic_sizes(scaled, samples),),
                input_names=names,
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            program.save(str(file), external_data=False)
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ModelError(
            f"cannot be written as ONNX: {reason}",
            where=type(model).__name__,
            fix="export without ONNX: manifest and weights rebuild the model",
        ) from error


def compare_graph(model: nn.Module, samples: Samples, file: Path, *, tolerance: float) -> Parity:
    """Compare an ONNX file with the model on samples: two singly, the rest in batches of 64.

    Raises
    ------
    ModelError
        If ONNX Runtime cannot run the graph, or logits differ by more than ``tolerance`` or are
        not finite.
    """
    require_onnx()
    prepared = PreparedModel(model, samples.prepare)
    ours, theirs = [], []
    first = np.arange(min(2, len(samples)))
    rest = samples.batches(64, positions=np.arange(len(first), len(samples)))
    with torch.inference_mode(), eval_mode(prepared), _runtime_errors(file):
        session = _session(file)
        for at in (*first[:, None], *rest):
            scaled = _scaled(samples, at)
            ours.append(prepared(scaled).numpy())
            named = {INPUT: scaled} if isinstance(scaled, Tensor) else scaled
            theirs.append(session.run([OUTPUT], {k: x.numpy() for k, x in named.items()})[0])
    a, b = np.concatenate(ours), np.concatenate(theirs)
    difference = float(np.abs(a - b).max())
    if not difference <= tolerance:
        raise ModelError(
            f"logits differ by up to {difference:.3g} from the model's on {len(a)} samples, more "
            f"than {tolerance:g}",
            where=file.name,
            fix="export without ONNX, or raise the tolerance if that is little for these logits",
        )
    return Parity(len(a), difference, float((a.argmax(axis=1) == b.argmax(axis=1)).mean()))


def _scaled(samples: Samples, positions: np.ndarray) -> Batch:
    stored = samples.inputs.batch(positions)
    return samples.batch(positions) if isinstance(stored, dict) else Preparation()(stored)


def _dynamic_sizes(batch: Batch, samples: Samples) -> Any:
    """Which sizes of the inputs differ between batches: their number, and the length of texts."""
    rows = torch.export.Dim("batch", min=1)
    if isinstance(batch, Tensor):
        return {0: rows}
    sizes = {0: rows}
    if is_ragged(samples.inputs):
        sizes[1] = torch.export.Dim.DYNAMIC
    return dict.fromkeys(batch, sizes)


@contextmanager
def _runtime_errors(file: Path) -> Iterator[None]:
    """Turn the errors of ONNX Runtime into ours: torch writes graphs that it cannot run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        yield
    except (state.Fail, state.InvalidGraph, state.NotImplemented, state.RuntimeException) as error:
        reason = str(error).rpartition("failed:")[2].strip().split("\n")[0]
        raise ModelError(
            f"ONNX Runtime cannot run the graph that torch made of the model: {reason}",
            where=file.name,
            fix="export without ONNX, or change this operation of the model",
        ) from error


def _session(file: Path) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(file), options, providers=providers)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's messages about packages that are not needed; errors are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
