"""Features of an encoder: the input of a classifier's last linear layer, or any function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Floats32
from expunge._core.distributed import this_process
from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge.data import Batch, DataLike, as_samples, require_tensor
from expunge.errors import DataError
from expunge.models.calls import capture_outputs, eval_mode, logits_of, module_named, on_device
from expunge.models.inspection import find_head
from expunge.records.arrays import require_finite

# Inputs to features ``float[b, d]``: a network without its head, or any function.
Encoder = Callable[[Tensor], Tensor]


class FeatureExtractor(nn.Module):
    """A classifier without its head: features ``float[b, d]``, the input of its last linear layer.

    Parameters
    ----------
    model
        A classifier. It is used, not copied.
    example
        Two prepared inputs, with which the head is found.

    Raises
    ------
    ModelError
        If no linear layer makes the logits.
    """

    def __init__(self, model: nn.Module, example: Batch) -> None:
        super().__init__()
        self.model = model
        fix = "give a function from inputs to features"
        self.head = find_head(model, example, where="encoder", fix=fix)

    @property
    def head_layer(self) -> nn.Module:
        """The last linear layer, whose output is not used."""
        return module_named(self.model, self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return features ``float[b, d]``."""
        with capture_outputs(self.model, (), inputs_of=self.head) as captured:
            logits_of(self.model, x)
        return captured["input"].flatten(1)


@isolated
def extract_features(
    encoder: nn.Module | Encoder,
    samples: DataLike,
    *,
    batch_size: int = 256,
    progress: Progress = silent,
) -> Floats32:
    """Compute the features of all samples by an encoder.

    Hand them to the detectors as evidence that does not come from the labels:
    ``replace(samples, features={"simclr": extract_features(encoder, samples)})``.

    Parameters
    ----------
    encoder
        A classifier, whose features are the input of its last linear layer; or any function from
        inputs ``float[b, …]`` to features ``float[b, d]``.
    samples
        The samples; inputs are tensors.
    batch_size
        Samples in a forward pass.
    progress
        Called after every batch.

    Returns
    -------
    ndarray
        ``float32[n, d]``.

    Raises
    ------
    DataError
        If the encoder does not give one row for each sample, or a feature is NaN or infinite.

    Notes
    -----
    One forward pass.

    Examples
    --------
    >>> from expunge.data import from_arrays
    >>> x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> extract_features(network, from_arrays(x, np.arange(6) % 2)).shape
    (6, 4)
    """
    device = this_process().device
    samples = as_samples(samples).to_device(device)
    module = encoder if isinstance(encoder, nn.Module) else nn.Identity()
    function = encoder
    if isinstance(encoder, nn.Module) and not isinstance(encoder, FeatureExtractor):
        function = module = FeatureExtractor(encoder, samples.example())
    parts = []
    with on_device(module, device), eval_mode(module), torch.no_grad():
        for rows in samples.batches(batch_size):
            x = require_tensor(samples.batch(rows, device=device), "encode")
            parts.append(function(x).float().cpu().numpy())
            progress("encode", int(rows[-1]) + 1, len(samples))
    features = np.concatenate(parts)
    if features.shape[:1] != (len(samples),) or features.ndim != 2:
        raise DataError(f"expected features [{len(samples)}, d], got {list(features.shape)}")
    require_finite(features, samples.ids, "features of the encoder")
    return features
