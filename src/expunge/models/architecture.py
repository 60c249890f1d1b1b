"""What kind of network a model is, by its layers."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

_LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)


def is_transformer(model: nn.Module) -> bool:
    """Whether a model is trained as transformers are: it has layer norm, and attention or no batch
    norm.

    Networks of convolutions with layer norm (ConvNeXt) and of tokens without attention (MLP-Mixer)
    are of that kind. Attention and norms of other packages count by their names.

    Examples
    --------
    >>> is_transformer(nn.TransformerEncoderLayer(8, 2)), is_transformer(nn.BatchNorm2d(8))
    (True, False)
    """
    modules = list(model.modules())
    if any(isinstance(m, nn.MultiheadAttention) for m in modules):
        return True
    names = {type(m).__name__.lower() for m in modules}
    if not any(isinstance(m, _LAYER_NORMS) for m in modules) and not any(
        name.endswith(("layernorm", "rmsnorm")) for name in names
    ):
        return False
    has_attention = any("attention" in name or "attn" in name for name in names)
    return has_attention or not has_batch_norm(model)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has batch norm."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is transformers' ``Conv1D``: linear, with a weight ``[inputs, outputs]``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def tied_weights(model: nn.Module) -> dict[int, list[str]]:
    """Names of every parameter that has more than one, by its ``id``.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> list(tied_weights(model).values())
    [['0.weight', '1.weight']]
    """
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {key: found for key, found in names.items() if len(found) > 1}


def is_leaf(module: nn.Module) -> bool:
    """Whether a module holds no other but what makes its weights (a parametrisation)."""
    return all(name == "parametrizations" for name, _ in module.named_children())
