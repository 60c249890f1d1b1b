"""SimCLR: an encoder trained on images alone, after Chen et al. (arXiv 2002.05709).

For label noise that depends on the image: the encoder cannot memorise labels that it never uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.distributed import this_process
from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge._core.rng import temp_seed, torch_generator
from expunge.config import Precision
from expunge.data import DataLike, Samples, as_samples, require_tensor
from expunge.errors import ConfigError, DataError, ModelError, check_range
from expunge.models.calls import call_model, device_of, eval_mode, logits_of, to_channels_last
from expunge.models.checks import check_model
from expunge.models.copying import copy_model
from expunge.selfsupervised.augmentation import SimCLRAugmentation
from expunge.selfsupervised.features import FeatureExtractor
from expunge.storage.artefacts import Artefact
from expunge.storage.run_folder import open_run
from expunge.storage.weights import fit_weights, model_fingerprint, state_of
from expunge.training.checkpoints import Checkpoint
from expunge.training.loop import fit
from expunge.training.optimisation import TuneConfig
from expunge.training.reading import Reads
from expunge.training.steps import Step


@dataclass(frozen=True)
class SimclrConfig:
    """Settings of the training of an encoder.

    Parameters
    ----------
    epochs
        Number of epochs, 1 or more.
    batch_size
        Images in a batch, 2 or more. Each has two views.
    temperature
        Of the loss, above 0; see `nt_xent`.
    hidden, projection
        Widths of the projection head, which is discarded after the training.
    strength, area, blur, scale
        Of the augmentation; see `SimCLRAugmentation`. A scale of 0.5 needs a quarter of the time.
    lr
        Peak learning rate for batches of 256 images, above 0; it scales with the batch size. It
        rises linearly over ``warmup`` of the steps and falls linearly to zero.
    weight_decay
        Of SGD with momentum.
    warmup
        Fraction of the steps, in [0, 1).
    precision
        As in `TuneConfig`.

    Raises
    ------
    ConfigError
        If a value lies outside its interval.
    """

    epochs: int = 30
    batch_size: int = 256
    temperature: float = 0.2
    hidden: int = 256
    projection: int = 64
    strength: float = 0.5
    area: tuple[float, ...] = (0.2, 1.0)
    blur: float = 0.0
    scale: float = 1.0
    lr: float = 0.3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_range(
            ConfigError,
            {
                "simclr.epochs": (self.epochs, "[1, inf)"),
                "simclr.batch_size": (self.batch_size, "[2, inf)"),
                "simclr.hidden": (self.hidden, "[1, inf)"),
                "simclr.projection": (self.projection, "[1, inf)"),
                "simclr.temperature": (self.temperature, "(0, inf)"),
                "simclr.lr": (self.lr, "(0, 1e30]"),
            },
        )


# two-cores: minutes on a CPU. published: CIFAR-10 in the paper's appendix (ResNet-50, no blur).
SETTINGS: Mapping[str, SimclrConfig] = {
    "two-cores": SimclrConfig(epochs=60, scale=0.5),
    "published": SimclrConfig(
        epochs=1000,
        batch_size=512,
        temperature=0.5,
        hidden=2048,
        projection=128,
        area=(0.08, 1.0),
        lr=0.5,
        weight_decay=1e-6,
        warmup=0.01,
    ),
}


def nt_xent(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Return the contrastive loss of two views of every image.

    With the 2b normalised rows z and the partner ``j(i)``, the other view of the same image:
    ``−1/2b Σ_i log( exp(z_i·z_j(i) / t) / Σ_{k≠i} exp(z_i·z_k / t) )``.

    Parameters
    ----------
    first, second
        ``float[b, d]``, projections of two views, row by row of the same images.
    temperature
        t, above 0.

    Returns
    -------
    Tensor
        A scalar in float32; ``log(2b − 1)`` if all rows are equal.

    Raises
    ------
    DataError
        If the shapes differ or there are no rows.

    Notes
    -----
    Cost: 4 b² d multiply-adds.

    References
    ----------
    Chen et al., 2020, arXiv:2002.05709.

    Examples
    --------
    >>> rows = torch.ones(4, 3)
    >>> round(float(nt_xent(rows, rows)), 4)  # log 7
    1.9459
    """
    if first.dim() != 2 or first.shape != second.shape or not len(first):
        raise DataError(
            f"expected two equal shapes [b, d], got {tuple(first.shape)} and {tuple(second.shape)}",
            where="nt_xent",
        )
    z = nn.functional.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return nn.functional.cross_entropy(similarity, partner)


class Pretrained(NamedTuple):
    """A classifier whose body was trained on images alone, and the seconds that it took."""

    model: nn.Module
    seconds: float


@isolated
def pretrain(
    model: nn.Module,
    samples: DataLike,
    config: SimclrConfig | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Pretrained:
    """Train a copy of a classifier's body on images alone, by contrast of two views.

    Two `SimCLRAugmentation` views of every image pass through the body and a projection head, and
    `nt_xent` pulls them together. Labels are not used. The head of the classifier does not change,
    the projection head is discarded.

    Parameters
    ----------
    model
        A classifier with a linear head. Training starts from its weights. It is not changed.
    samples
        Images ``float[n, C, H, W]`` with 1 or 3 channels.
    config
        ``two-cores`` of `SETTINGS` by default.
    seed
        Decides the order, the views and the projection head.
    out
        A run folder. An interrupted training resumes from its last epoch, bit for bit on a CPU.
    overwrite
        Whether to discard what is in the folder.
    progress
        Called after every step.

    Returns
    -------
    Pretrained
        The classifier with the trained body, and the seconds.

    Raises
    ------
    ModelError
        If the loss is not finite, no linear layer makes the logits, or the network does not accept
        images of ``config.scale`` times the side.

    Notes
    -----
    An epoch costs as much as two of plain training. Deviation from the paper: SGD with momentum
    instead of LARS, which is for large batches. Each of several processes computes the projections
    of its images; the loss contrasts those of all.

    References
    ----------
    Chen et al., 2020, arXiv:2002.05709.

    Examples
    --------
    >>> from expunge.data import from_arrays
    >>> images = np.random.default_rng(0).random((8, 1, 6, 6), dtype=np.float32)
    >>> samples = from_arrays(images, np.arange(8) % 2)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> encoder = pretrain(network, samples, SimclrConfig(epochs=1, batch_size=8)).model
    >>> bool((encoder[1].weight != network[1].weight).any())
    True
    """
    config, samples = config or SETTINGS["two-cores"], as_samples(samples)
    check_model(model)
    header = {
        "simclr": asdict(config),
        "seed": seed,
        "model": model_fingerprint(model),
        "inputs": samples.inputs.fingerprint(),
        "preparation": repr(samples.prepare),
    }
    with open_run(out, header, overwrite=overwrite) as run:

        def compute() -> Artefact:
            checkpoint = run.checkpoint("model", header)
            trained = _train_contrastive(
                model, samples, config, seed=seed, checkpoint=checkpoint, progress=progress
            )
            return Artefact(tensors=state_of(trained))

        artefact = run.stage("model", header, compute)
        trained = copy_model(model)
        fit_weights(trained, artefact.tensors, where="simclr")
        return Pretrained(trained.eval(), run.seconds["model"])


def _train_contrastive(
    model: nn.Module,
    samples: Samples,
    config: SimclrConfig,
    *,
    seed: int,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> nn.Module:
    """Return a trained copy of the model."""
    if compatible_config(config, model, samples) != config:
        raise ModelError(
            f"the network does not accept images of {config.scale:g} times the side",
            where="simclr",
            fix="set simclr.scale to 1",
        )
    model = copy_model(model)
    body = FeatureExtractor(model, samples.example())
    network, view = _with_projection(body, samples, config, seed), _augmentation(config, samples)
    resident = samples.to_device(this_process().device)

    def update(step: Step) -> None:
        draw = step.torch_random()
        x = require_tensor(resident.batch(step.rows, device=step.device), "simclr")
        both = torch.cat([view(x, draw), view(x, draw)])
        with step.autocast():
            z = call_model(step.network, to_channels_last(both))
        first, second = step.gather(z.float().view(2, -1, z.shape[1]), dim=1)
        step.minimise(nt_xent(first, second, temperature=config.temperature))

    with _frozen_head(body):
        fit(
            [network],
            len(samples),
            update,
            _tune_config(config),
            seed=seed,
            what="simclr",
            reads=Reads(resident),
            is_last_batch_whole=True,
            checkpoint=checkpoint,
            progress=progress,
        )
    return model


def compatible_config(config: SimclrConfig, model: nn.Module, samples: Samples) -> SimclrConfig:
    """Return the settings, with a scale of 1 if the network accepts one image size only."""
    view, x = _augmentation(config, samples), require_tensor(samples.example(), "simclr")
    try:
        with eval_mode(model), torch.no_grad():
            logits_of(model, view(x, torch_generator(0, "simclr")).to(device_of(model)))
    except RuntimeError:  # torch's error for shapes that do not match
        return replace(config, scale=1.0)
    return config


def _with_projection(
    body: FeatureExtractor, samples: Samples, config: SimclrConfig, seed: int
) -> nn.Module:
    """Return the body with a projection head: linear, batch norm, ReLU, linear."""
    device = device_of(body)
    with eval_mode(body), torch.no_grad():
        width = body(require_tensor(samples.batch(np.arange(1), device=device), "simclr")).shape[1]
    with temp_seed(seed, "projection"):
        head = nn.Sequential(
            nn.Linear(width, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.projection),
        )
    return nn.Sequential(body, head.to(device))


@contextmanager
def _frozen_head(body: FeatureExtractor) -> Iterator[None]:
    """Freeze the classifier's head, which the loss does not use: DDP waits for all gradients."""
    parameters = [p for p in body.head_layer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    yield
    for parameter in parameters:
        parameter.requires_grad_(True)


def _augmentation(config: SimclrConfig, samples: Samples) -> SimCLRAugmentation:
    return SimCLRAugmentation(
        strength=config.strength,
        area=config.area,
        blur=config.blur,
        scale=config.scale,
        prepare=samples.prepare,
    )


def _tune_config(config: SimclrConfig) -> TuneConfig:
    return TuneConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr * config.batch_size / 256,
        weight_decay=config.weight_decay,
        schedule="onecycle",
        warmup=config.warmup,
        precision=config.precision,
    )
