"""Named random views (augmentations) of batches of prepared images, audio or vectors."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import seed_everything
from expunge.data import audio_views, text_views, vector_views
from expunge.data.inputs import Batch
from expunge.data.samples import Samples, View
from expunge.errors import DataError

# Inputs with one of these numbers of channels, and sides of this many pixels or more, are images.
_IMAGE_CHANNELS, _MIN_IMAGE_SIDE = (1, 3, 4), 8

views: Registry[View, NoMetadata] = Registry("view", NoMetadata)
views.register("shift")(audio_views.shift)
views.register("speed")(audio_views.speed)
views.register("gain")(audio_views.gain)
views.register("background")(audio_views.background)
views.register("speech")(audio_views.speech)
views.register("speech-background")(audio_views.speech_background)
views.register("neighbour-noise")(vector_views.neighbour_noise)
views.register("feature-dropout")(vector_views.feature_dropout)
views.register("mix")(vector_views.mix)
views.register("token-dropout")(text_views.token_dropout)
views.register("span-mask")(text_views.span_mask)


def view(name: str | Callable[..., Tensor]) -> View | None:
    """Look up a view by its name; ``"none"`` gives None.

    A view maps ``float[b, c, h, w]`` (audio: ``float[b, samples]``) and a CPU generator to a tensor
    of the same shape, dtype and device. The same generator state gives the same view; the input is
    not changed.

    Parameters
    ----------
    name
        Images: ``"crop"``, ``"flip"``, ``"crop-flip"``. Audio: ``"shift"``, ``"speed"``,
        ``"gain"``, ``"background"``, ``"speech"``, ``"speech-background"``. Vectors:
        ``"neighbour-noise"``, ``"feature-dropout"``, ``"mix"``. Token ids: ``"token-dropout"``,
        ``"span-mask"``. Or ``"none"``. A function of a batch and a generator is a view itself. A
        function of one prepared input, a torchvision transform for example, is called for each;
        what it draws from the global generators of torch, NumPy and Python is seeded from the
        generator.

    Returns
    -------
    View or None
        None for ``"none"``.

    Raises
    ------
    ConfigError
        For an unknown name.

    Examples
    --------
    >>> view("none") is None
    True
    >>> x = torch.arange(8.0).view(1, 1, 2, 4)
    >>> view("crop-flip")(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 2, 4])
    """
    if callable(name):
        return name if _n_arguments(name) != 1 else InputView(name)
    function = views.get(name)
    return None if function is none else function


def scoring_view(samples: Samples, example: Batch) -> View | None:
    """Return the view that scores are averaged over: the samples' own, or one for what they are.

    Small changes show what a network has memorised; without any, its layers and predictions are
    hardly believed. (Clean photographs, 3,000 and 6,000: 18 to 34 % were flagged, with shifts at
    most 3 %. Clean clips: 21 %, with `speech` 0.4 %.) A network that does not tolerate them is
    believed as little as before.

    Parameters
    ----------
    samples
        The samples. Those without a view of their own are not augmented in a training.
    example
        Prepared inputs of some samples.

    Returns
    -------
    View or None
        Without a view of their own: `crop` for inputs ``[b, c, h, w]`` of 1, 3 or 4 channels and
        sides of 8 pixels or more, `speech` for sound ``[b, samples]`` of a known sample rate, None
        for others.

    Examples
    --------
    >>> from expunge.data import from_arrays
    >>> x = torch.zeros(2, 3, 8, 8)
    >>> scoring_view(from_arrays(x, [0, 1]), x) is crop
    True
    """
    if samples.view is not None or not isinstance(example, Tensor):
        return samples.view
    if example.ndim == 2 and samples.sample_rate is not None:
        return audio_views.speech
    is_image = example.ndim == 4 and example.shape[1] in _IMAGE_CHANNELS
    return crop if is_image and min(example.shape[2:]) >= _MIN_IMAGE_SIDE else None


class InputView:
    """A view that applies a random transform to every input.

    Parameters
    ----------
    transform
        Called with one prepared input, without the batch dimension.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.transform = transform

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Transform every input of a batch."""
        seed = int(torch.randint(2**31, (1,), generator=generator))
        with seed_everything(seed, "view"):
            return torch.stack([self.transform(row) for row in x])


def _n_arguments(function: Callable[..., Tensor]) -> int:
    """The number of positional arguments that a function requires."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


@views.register("none")
def none(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the inputs unchanged."""
    return x


@views.register("crop")
def crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by a few pixels and fill the border by reflection.

    The offset is uniform in ``[−p, p]`` for rows and for columns, with ``p`` = 4 pixels for sides
    of 32 or more, 2 from 16 on, else 1.

    Parameters
    ----------
    x
        ``float[b, c, h, w]``, prepared images. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.arange(8.0).view(1, 1, 2, 4)
    >>> crop(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 2, 4])
    """
    rows, columns = _crop_indices(x, generator)
    return _gather_pixels(x, rows, columns)


@views.register("flip")
def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Parameters
    ----------
    x
        ``float[b, c, h, w]``, prepared images. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.arange(8.0).view(1, 1, 2, 4)
    >>> flip(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 2, 4])
    """
    _check_images(x)
    b, _, h, w = x.shape
    return _gather_pixels(
        x, torch.arange(h).expand(b, h), _flip_indices(torch.arange(w).expand(b, w), generator)
    )


@views.register("crop-flip")
def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Apply `crop`, then `flip`: the standard augmentation of small natural images.

    Parameters
    ----------
    x
        ``float[b, c, h, w]``, prepared images. It is not changed.
    generator
        A CPU generator; equal states give equal views.

    Returns
    -------
    Tensor
        The same shape, dtype and device.

    Examples
    --------
    >>> x = torch.arange(8.0).view(1, 1, 2, 4)
    >>> crop_flip(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 2, 4])
    """
    rows, columns = _crop_indices(x, generator)
    return _gather_pixels(x, rows, _flip_indices(columns, generator))


def _padding(side: int) -> int:
    """The largest offset along a side of this length, in pixels."""
    wanted = 4 if side >= 32 else 2 if side >= 16 else 1
    return min(wanted, side - 1)  # a reflection needs more pixels than it mirrors


def _crop_indices(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row and column indices ``[b, h]`` and ``[b, w]`` of the crops, reflected into the image."""
    _check_images(x)
    sides = []
    for side in x.shape[2:]:
        pad = _padding(side)
        offset = torch.randint(-pad, pad + 1, (len(x), 1), generator=generator)
        index = (torch.arange(side) + offset).abs()
        sides.append(torch.where(index >= side, 2 * (side - 1) - index, index))
    return sides[0], sides[1]


def _gather_pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute ``x[i, :, rows[i]][:, :, columns[i]]`` for every i, in one gather."""
    b, c, h, w = x.shape
    index = rows.to(x.device)[:, :, None] * w + columns.to(x.device)[:, None, :]
    flat = x.reshape(b, c, h * w)
    return flat.gather(2, index.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)


def _flip_indices(columns: Tensor, generator: torch.Generator) -> Tensor:
    """The column indices ``[b, w]``, each row reversed with probability 1/2."""
    coins = torch.randint(0, 2, (len(columns), 1), generator=generator).bool()
    return torch.where(coins, columns.flip(1), columns)


def _check_images(x: Tensor) -> None:
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    if len(shape) != 4:
        raise DataError(
            f"this view is for images of shape [b, C, H, W], not {shape or type(x).__name__}",
            fix="set view to 'none', or to 'speech' for audio",
        )
