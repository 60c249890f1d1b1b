"""SimCLR: an encoder from images alone, for label noise that depends on the image.

After Chen et al. (arXiv 2002.05709). No label is looked at, so that none can be learned by heart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from expunge._core.distributed import single_process
from expunge._core.progress import Progress, silent
from expunge._core.rng import generator, temp_seed, torch_generator
from expunge.data import Batch, Preparation, Samples, require_tensor
from expunge.errors import ConfigError, DataError, ModelError
from expunge.models.inspection import (
    capture_outputs,
    check_model,
    device_of,
    eval_mode,
    find_head,
    logits_of,
    on_device,
    to_channels_last,
)
from expunge.storage.run_folder import Artefact, open_run
from expunge.storage.weights import fit_weights, model_fingerprint
from expunge.training.loop import Checkpoint, check_finite, restore, training_state
from expunge.training.optimisation import (
    Precision,
    TuneConfig,
    autocast,
    batch_boundaries,
    build_optimizer,
    set_learning_rate,
)

# Inputs to features, float[b, d]: any network without its head, or a function of your own.
Encoder = Callable[[Tensor], Tensor]
# Luma, and the axes of colour that hue turns around it (YIQ).
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True)
class SimCLRAugmentation:
    """A random view of images, as SimCLR distorts them; a `View` of prepared inputs.

    Crop of a share of the area in ``area`` and of an aspect in [3/4, 4/3], scaled to ``scale`` of
    the image's sides; mirrored in half of the cases. In ``jitter`` of the cases colours:
    brightness, contrast and saturation by factors in ``1 ± 0.8 s``, hue by an angle in ``± 0.2 s``
    of a turn, s the strength; in ``grey`` of the cases none. In ``blur`` of the cases a Gaussian, σ
    in [0.1, 2] pixels, as wide as a tenth of the side. ``prepare``: what the inputs were prepared
    with; colours are those of the images before.

    x: ``float[b, C, H, W]``, 1 or 3 channels (one has brightness and contrast alone); the same
    state of the generator gives the same view. Ours: all colours are one affine map of each image,
    so their order is fixed, hue turns in YIQ rather than HSV, and values are cut to [0, 1] once.
    """

    strength: float = 0.5
    area: tuple[float, ...] = (0.2, 1.0)
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    scale: float = 1.0
    prepare: Preparation = field(default_factory=Preparation)

    def __post_init__(self) -> None:
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"area must be two shares in (0, 1], rising, not {self.area}")
        for name in ("jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if not 0 < self.scale <= 1:
            raise ConfigError(f"scale must lie in (0, 1], not {self.scale}")
        if not 0 <= self.strength <= 1.25:
            raise ConfigError(f"strength must lie in [0, 1.25], not {self.strength}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise DataError(
                f"this view is for images of shape [b, 1 or 3, H, W], not {tuple(x.shape)}",
                fix="give the images grey or RGB channels",
            )
        draw = _Draw(len(x), generator, x.device)
        x = _cropped(x, draw, self.area, self.scale)
        images = _recoloured(self.prepare.undo(x), draw, self)
        if self.blur:
            images = _blurred(images, draw, self.blur)
        return self.prepare.standardise(images.clamp(0, 1))


@dataclass(frozen=True)
class SimclrConfig:
    """How to train an encoder.

    temperature: of the loss. hidden, projection: widths of the head that is thrown away.
    strength, area, blur, scale: see `SimCLRAugmentation`; a scale of 0.5 costs a quarter. lr: the
    highest rate, reached after ``warmup`` of the steps and falling from there; for a batch of 256
    images,
    and scaled in proportion.
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
        for name in ("epochs", "batch_size", "hidden", "projection"):
            if getattr(self, name) < 1 + (name == "batch_size"):
                raise ConfigError(f"simclr.{name} is {getattr(self, name)}: too small")
        for name in ("temperature", "lr"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"simclr.{name} must be above 0, not {value}")


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
    """The contrastive loss of two views of every image: which of all others is its own?

    With the 2b unit vectors z and partner ``j(i)``:
    ``−1/2b Σ_i log( exp(z_i·z_j(i) / t) / Σ_{k≠i} exp(z_i·z_k / t) )``.

    first, second: ``float[b, d]``, row by row of the same images, of any length. Returns a scalar
    in float32: log(2b − 1) where all are alike. Cost: 4 b² d multiply-adds.
    """
    if first.dim() != 2 or first.shape != second.shape or not len(first):
        raise DataError(
            f"two equal sets of rows are needed, not {tuple(first.shape)} and "
            f"{tuple(second.shape)}",
            where="nt_xent",
        )
    z = nn.functional.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return nn.functional.cross_entropy(similarity, partner)


class Body(nn.Module):
    """A classifier up to its head: features ``float[b, d]``, the input of its last linear layer."""

    def __init__(self, model: nn.Module, example: Batch) -> None:
        super().__init__()
        self.model = model
        fix = "give a function from inputs to features"
        self.head = find_head(model, example, where="encoder", fix=fix)

    def forward(self, x: Tensor) -> Tensor:
        with capture_outputs(self.model, (), inputs_of=self.head) as found:
            logits_of(self.model, x)
        return found["input"].flatten(1)


class Pretrained(NamedTuple):
    """A classifier whose body has learned from images alone, and the seconds that it took."""

    model: nn.Module
    seconds: float


def pretrain(
    model: nn.Module,
    samples: Samples,
    config: SimclrConfig | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Pretrained:
    """Train a copy of a classifier's body on the images alone; its head is untouched.

    Two `SimCLRAugmentation` views of every image go through the body and a projection head
    (thrown
    away afterwards), and `nt_xent` draws them together. SGD with momentum, where the paper has
    LARS for
    its large batches. Labels are not looked at.

    model: any classifier with a linear head, its weights the start. config: ``two-cores`` of
    `SETTINGS` by default. out: a run folder of its own; an interrupted training goes on from the
    epoch before, bit for bit on a CPU. fresh: discard what is in it. One process.
    ModelError if the loss is not finite. Cost: that of two epochs of plain training an epoch.
    """
    config = config or SETTINGS["two-cores"]
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
            found = _contrasted(model, samples, config, seed, checkpoint, progress)
            return Artefact(tensors=found.state_dict())

        artefact = run.stage("model", header, compute)
        found = copy.deepcopy(model)
        fit_weights(found, artefact.tensors, where="simclr")
        return Pretrained(found.eval(), run.seconds["model"])


def _contrasted(
    model: nn.Module,
    samples: Samples,
    config: SimclrConfig,
    seed: int,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> nn.Module:
    """The loop itself."""
    what = "simclr"
    device = single_process(what, fix="start one process").device
    samples = samples.to_device(device)
    model = copy.deepcopy(model).to(device)
    if fitting(config, model, samples) != config:
        raise ModelError(
            f"the network does not take images of {config.scale:g} times the side",
            where=what,
            fix="set simclr.scale to 1",
        )
    learner = _learner(model, samples, config, seed)
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tuning, view = _tuning(config), _view(config, samples)
    optimizer = build_optimizer(learner, tuning)
    first = restore(checkpoint, learner, optimizer)
    cuts = batch_boundaries(len(samples), config.batch_size, config.batch_size)  # no small ones
    batches = len(cuts) + 1
    total = batches * config.epochs
    learner.train()
    for epoch in range(first, config.epochs):
        order = generator(seed, "order", epoch).permutation(len(samples))
        with temp_seed(seed, what, epoch):
            for step, rows in enumerate(np.split(order, cuts), start=epoch * batches):
                set_learning_rate(optimizer, tuning, (step + 0.5) / total)
                draw = torch_generator(seed, what, step)
                x = require_tensor(samples.batch(rows, device=device), what)
                both = torch.cat([view(x, draw), view(x, draw)])
                with autocast(config.precision, device):
                    z = learner(to_channels_last(both))
                first_views, second_views = z.float().chunk(2)
                loss = nt_xent(first_views, second_views, temperature=config.temperature)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                progress(what, step + 1, total)
        check_finite(loss, epoch, what)
        if checkpoint is not None:
            checkpoint.save(epoch + 1, training_state(learner, optimizer))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def fitting(config: SimclrConfig, model: nn.Module, samples: Samples) -> SimclrConfig:
    """The settings, with a scale of 1 for a network that takes images of one size alone."""
    view, x = _view(config, samples), require_tensor(samples.example(), "simclr")
    try:
        with eval_mode(model), torch.no_grad():
            logits_of(model, view(x, torch_generator(0, "simclr")).to(device_of(model)))
    except RuntimeError:  # what torch says of shapes that do not match
        return replace(config, scale=1.0)
    return config


def extract_features(
    encoder: nn.Module | Encoder,
    samples: Samples,
    *,
    batch_size: int = 256,
    progress: Progress = silent,
) -> np.ndarray:
    """Features of all samples, ``float32[n, d]``: of a classifier's `Body`, or of any function.

    Hand them on as evidence that does not come from the labels:
    ``replace(samples, features={"simclr": encoded(encoder, samples)})``. One plain pass.
    DataError where they are not one row of finite numbers a sample.
    """
    device = Accelerator().device
    samples = samples.to_device(device)
    module = encoder if isinstance(encoder, nn.Module) else nn.Identity()
    function = encoder
    if isinstance(encoder, nn.Module) and not isinstance(encoder, Body):
        function = module = Body(encoder, samples.example())
    parts = []
    with on_device(module, device), eval_mode(module), torch.no_grad():
        for rows in samples.batches(batch_size):
            x = require_tensor(samples.batch(rows, device=device), "encode")
            parts.append(function(x).float().cpu().numpy())
            progress("encode", int(rows[-1]) + 1, len(samples))
    features = np.concatenate(parts)
    if features.shape[:1] != (len(samples),) or features.ndim != 2:
        raise DataError(f"one row of features a sample is needed, not {features.shape}")
    return features


def _learner(model: nn.Module, samples: Samples, config: SimclrConfig, seed: int) -> nn.Module:
    """The body with a projection head: hidden layer with batch norm and ReLU, then linear."""
    device = device_of(model)
    body = Body(model, samples.batch(np.arange(min(2, len(samples))), device=device))
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


def _view(config: SimclrConfig, samples: Samples) -> SimCLRAugmentation:
    return SimCLRAugmentation(
        strength=config.strength,
        area=config.area,
        blur=config.blur,
        scale=config.scale,
        prepare=samples.prepare,
    )


def _tuning(config: SimclrConfig) -> TuneConfig:
    return TuneConfig(
        lr=config.lr * config.batch_size / 256,
        weight_decay=config.weight_decay,
        schedule="onecycle",
        warmup=config.warmup,
    )


class _Draw:
    """Random numbers for every image of a batch, drawn on the CPU: the same on every device."""

    def __init__(self, n: int, generator: torch.Generator, device: torch.device) -> None:
        self.n, self._generator, self._device = n, generator, device

    def uniform(self, low: float, high: float) -> Tensor:
        """``float32[n]``."""
        values = torch.rand(self.n, generator=self._generator)
        return (low + (high - low) * values).to(self._device)

    def coins(self, share: float) -> Tensor:
        """``bool[n]``, true in this share of the cases."""
        return self.uniform(0, 1) < share


def _cropped(x: Tensor, draw: _Draw, area: tuple[float, ...], scale: float) -> Tensor:
    """A random part of every image, bilinearly scaled, and perhaps mirrored."""
    share = draw.uniform(area[0], area[1])
    aspect = draw.uniform(-math.log(4 / 3), math.log(4 / 3)).exp()
    wide = (share * aspect).sqrt().clamp(max=1)  # of the image's width
    high = (share / aspect).sqrt().clamp(max=1)
    left = (1 - wide) * draw.uniform(-1, 1)  # its centre, in [−1, 1] across the image
    down = (1 - high) * draw.uniform(-1, 1)
    mirrored = torch.where(draw.coins(0.5), -wide, wide)
    none = torch.zeros_like(wide)
    rows = torch.stack([mirrored, none, left, none, high, down], dim=1).view(-1, 2, 3)
    sides = [max(1, round(scale * side)) for side in x.shape[2:]]
    grid = nn.functional.affine_grid(rows, [*x.shape[:2], *sides], align_corners=False)
    return nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _recoloured(images: Tensor, draw: _Draw, how: SimCLRAugmentation) -> Tensor:
    """Brightness, contrast, saturation and hue as one affine map of the colours of each image."""
    b, c = images.shape[:2]
    spread = 0.8 * how.strength
    bright, contrast, saturate = (draw.uniform(max(0.0, 1 - spread), 1 + spread) for _ in range(3))
    turn = 2 * math.pi * draw.uniform(-0.2 * how.strength, 0.2 * how.strength)
    still = ~draw.coins(how.jitter)
    bright, contrast, saturate = (v.masked_fill(still, 1.0) for v in (bright, contrast, saturate))
    turn = turn.masked_fill(still, 0.0)
    saturate = saturate.masked_fill(draw.coins(how.grey), 0.0)
    if c == 1:
        grey, colours = images, torch.ones(b, 1, 1, device=images.device)
    else:
        to_yiq = torch.tensor(_YIQ, device=images.device)
        cos, sin, none = saturate * turn.cos(), saturate * turn.sin(), torch.zeros_like(turn)
        one = torch.ones_like(turn)
        turned = torch.stack([one, none, none, none, cos, -sin, none, sin, cos], dim=1)
        colours = torch.linalg.inv(to_yiq) @ turned.view(b, 3, 3) @ to_yiq
        grey = (images * to_yiq[0].view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    scale = (bright * contrast).view(b, 1, 1)
    mean = (bright * (1 - contrast)).view(b, 1, 1, 1) * grey.mean(dim=(1, 2, 3), keepdim=True)
    return (scale * colours @ images.flatten(2)).view_as(images) + mean


def _blurred(images: Tensor, draw: _Draw, share: float) -> Tensor:
    """Some images under a Gaussian of their own width, one axis after the other."""
    reach = max(1, min(images.shape[2:]) // 20)
    sigma = draw.uniform(0.1, 2.0)
    sigma = torch.where(draw.coins(share), sigma, 1e-3)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    taps = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
    taps = taps / taps.sum(dim=1, keepdim=True)
    for axis in (2, 3):
        pad = [0, 0, reach, reach] if axis == 2 else [reach, reach, 0, 0]
        wide = nn.functional.pad(images, pad, mode="reflect")
        size = images.shape[axis]
        parts = (wide.narrow(axis, k, size) for k in range(2 * reach + 1))
        images = sum(tap.view(-1, 1, 1, 1) * part for tap, part in zip(taps.T, parts, strict=True))
    return images
