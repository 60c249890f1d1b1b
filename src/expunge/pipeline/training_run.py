"""The training of a model on all samples with the given labels, before a repair."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from torch import nn

from expunge import stages
from expunge._core.distributed import this_process
from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge.data import DataLike, as_samples
from expunge.data.checks import require_two_labels
from expunge.models.adaptation import adapt_model
from expunge.models.checks import check_fit, check_model, check_training
from expunge.repair_context import weights_codec
from expunge.storage.run_folder import open_run
from expunge.storage.weights import model_fingerprint
from expunge.training.optimisation import TuneConfig


class Trained(NamedTuple):
    """A trained model and the seconds that it took."""

    model: nn.Module
    seconds: float


@isolated
def train(
    model: nn.Module,
    data: DataLike,
    config: TuneConfig,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train a copy of the model on all samples with the given labels, as a user would have.

    Parameters
    ----------
    model
        An untrained classifier. It is left as it was.
    data
        The training data.
    config
        Settings of the training.
    seed
        Seed of order, views and dropout.
    out
        A run folder of its own, from which an interrupted training resumes.
    overwrite
        Discard what an earlier training left in the folder.
    progress
        Called as ``progress(what, done, total)``.
    """
    samples, seed = as_samples(data), int(seed)
    model = adapt_model(model, samples).model
    check_model(model)
    check_fit(model, samples)
    require_two_labels(samples.labels, where=samples.name)
    check_training(model, samples)
    header = {
        "training": asdict(config),
        "seed": seed,
        "model": model_fingerprint(model),
        "train": samples.fingerprint(),
    }
    codec = weights_codec(model, "train")
    with open_run(out, header, overwrite=overwrite, accelerator=this_process()) as run:
        artefact = run.stage(
            "model",
            header,
            lambda: codec.store(
                stages.tune(
                    model,
                    samples,
                    None,
                    config,
                    seed=seed,
                    checkpoint=run.checkpoint("model", header),
                    stream="train",
                    progress=progress,
                )
            ),
        )
    return Trained(codec.load(artefact).eval(), run.seconds["model"])
