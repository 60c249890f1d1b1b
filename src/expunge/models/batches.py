"""How many samples fit into one pass through a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.models.architecture import is_leaf
from expunge.models.calls import call_model, eval_mode, to_device

# Bytes of the largest input and output of a layer, of all samples of a pass.
MAX_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}


def samples_per_pass(
    model: nn.Module, example: Batch, device: torch.device, *, keeps_outputs: bool = False
) -> int:
    """Return how many samples a pass without gradients may have, 1 or more, for its memory.

    Parameters
    ----------
    model
        On any device. It is left as it was.
    example
        Prepared inputs of one sample or a few.
    device
        Where the passes will be computed: 4 GiB on a GPU, 512 MiB elsewhere.
    keeps_outputs
        Whether the outputs of all layers are kept at once, for gradients.

    Returns
    -------
    int
        The same in every process.

    Notes
    -----
    Cost: one forward pass of the example.

    Examples
    --------
    >>> network = nn.Conv2d(3, 16, 3, padding=1)
    >>> samples_per_pass(network, torch.zeros(1, 3, 2048, 2048), torch.device("cpu"))
    1
    """
    sizes: list[int] = [n_bytes_of(example)]

    def note(_: nn.Module, args: object, named: object, output: object) -> None:
        inputs = 0 if keeps_outputs else n_bytes_of(args) + n_bytes_of(named)
        sizes.append(n_bytes_of(output) + inputs)

    leaves = [m for m in model.modules() if is_leaf(m)]
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in leaves]
    own = next((t.device for t in model.parameters()), torch.device("cpu"))
    try:
        with eval_mode(model), torch.no_grad():
            call_model(model, to_device(example, own))
    finally:
        for hook in hooks:
            hook.remove()
    n = len(next(iter(example.values())) if isinstance(example, dict) else example)
    largest = (sum(sizes) if keeps_outputs else max(sizes)) / n
    return max(1, int(MAX_BYTES.get(device.type, MAX_BYTES["cpu"]) / max(largest, 1)))


def n_bytes_of(value: object) -> int:
    """The bytes of all tensors in a value."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(n_bytes_of, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(n_bytes_of, value))
    return 0
