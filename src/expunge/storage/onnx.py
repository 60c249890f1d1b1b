"""A model as an ONNX file, with its preparation and features, and how far that lies from it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Preparation, Samples
from expunge.errors import ModelError, extra_required, format_ids
from expunge.models.inspection import eval_mode, logits_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The names in the file.
INPUT, OUTPUT = "input", "logits"


@dataclass(frozen=True)
class Parity:
    """How far an ONNX file's logits lie from the model's on real samples.

    samples: how many. difference: the largest, absolute. equal: share of equal predictions.
    """

    samples: int
    difference: float
    equal: float


class Whole(nn.Module):
    """From scaled inputs, ``float[b, …]``, to logits: the preparation and the model."""

    def __init__(self, model: nn.Module, prepare: Preparation) -> None:
        super().__init__()
        self.model, self._prepare = model, prepare

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model, self._prepare(x))


def require_onnx() -> None:
    """Raise for the first package that ONNX files need and that is not installed."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise extra_required(package, "onnx")


def write_graph(model: nn.Module, samples: Samples, file: Path) -> None:
    """Write the model with the samples' preparation: scaled inputs in, logits out.

    Inputs are ``float32[b, …]``, pixels in [0, 1] and sound in [−1, 1], for any b; mean and std are
    in the graph, and so are features that the model computes. Raises ModelError for a model of
    several inputs, and for one that torch cannot trace. Cost: one trace, some seconds.
    """
    require_onnx()
    scaled = _scaled(samples, np.arange(min(2, len(samples))))
    whole = Whole(model, samples.prepare)
    try:
        with _quiet(), eval_mode(whole):
            program = torch.onnx.export(
                whole,
                (scaled,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            program.save(str(file), external_data=False)
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"cannot be written as ONNX: {reason}",
            where=type(model).__name__,
            fix="export without ONNX: manifest and weights rebuild the model",
        ) from error


def compare_graph(model: nn.Module, samples: Samples, file: Path, *, tolerance: float) -> Parity:
    """Ask an ONNX file and the model about the same samples: two singly, then by 64.

    Raises ModelError if two logits lie further apart than ``tolerance``, or are not finite.
    """
    session, whole = _session(file), Whole(model, samples.prepare)
    ours, theirs = [], []
    first = np.arange(min(2, len(samples)))
    rest = samples.batches(64, positions=np.arange(len(first), len(samples)))
    with torch.inference_mode(), eval_mode(whole):
        for at in (*first[:, None], *rest):
            scaled = _scaled(samples, at)
            ours.append(whole(scaled).numpy())
            theirs.append(session.run([OUTPUT], {INPUT: scaled.numpy()})[0])
    a, b = np.concatenate(ours), np.concatenate(theirs)
    difference = float(np.abs(a - b).max())
    if not difference <= tolerance:
        raise ModelError(
            f"logits lie up to {difference:.3g} from the model's on {len(a)} samples, more than "
            f"{tolerance:g}",
            where=file.name,
            fix="export without ONNX, or raise the tolerance if that is little for these logits",
        )
    return Parity(len(a), difference, float((a.argmax(axis=1) == b.argmax(axis=1)).mean()))


def _scaled(samples: Samples, positions: np.ndarray) -> Tensor:
    stored = samples.inputs.batch(positions)
    if isinstance(stored, dict):
        raise ModelError(
            f"takes several inputs by name: {format_ids(stored)}; ONNX files are for models of one",
            where="export",
            fix="export without ONNX",
        )
    return Preparation()(stored)


def _session(file: Path) -> InferenceSession:
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(file), options, providers=providers)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of packages that are not needed; what matters is an error."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
