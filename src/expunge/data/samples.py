"""The one form in which the stages see data: ids, labels, and inputs by position.

A source (one file each in this folder) reads a user's data into `Samples`. Inputs that fit into
memory are decoded once and kept as one tensor; others are read batch by batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from expunge.config import digest
from expunge.errors import DataError, format_ids, raise_all
from expunge.storage.hashing import content_of

Batch = Tensor | dict[str, Tensor]


def tensor_of(batch: Batch, where: str) -> Tensor:
    """The batch, where it is one tensor; else DataError."""
    if not isinstance(batch, Tensor):
        raise DataError("this training takes tensors, not dictionaries", where=where)
    return batch


View = Callable[[Tensor, torch.Generator], Tensor]


@runtime_checkable
class Inputs(Protocol):
    """Inputs by position; what `batch` returns is not yet prepared for the model."""

    def __len__(self) -> int: ...

    def batch(self, positions: np.ndarray) -> Batch: ...

    def fingerprint(self) -> str:
        """A hash of the content; equal content gives an equal hash."""
        ...


class TensorInputs:
    """Inputs that are kept in memory as one tensor of shape ``[n, …]``."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.contiguous()

    def __len__(self) -> int:
        return len(self.tensor)

    def batch(self, positions: np.ndarray) -> Tensor:
        rows = torch.from_numpy(np.asarray(positions, dtype=np.int64))
        return self.tensor[rows.to(self.tensor.device, non_blocking=True)]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.tensor.dtype}{tuple(self.tensor.shape)}".encode())
        for part in self.tensor.split(4096):
            digest.update(part.reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()


class LazyInputs:
    """Inputs that are read when they are asked for: one call of ``read(position)`` a sample.

    ``content`` is a hash that stands for the content (of the files' bytes, say).
    """

    def __init__(self, n: int, read: Callable[[int], Batch], content: str) -> None:
        self._n, self._read, self._content = n, read, content

    def __len__(self) -> int:
        return self._n

    def batch(self, positions: np.ndarray) -> Batch:
        items = [self._read(int(i)) for i in positions]
        if isinstance(items[0], Tensor):
            return torch.stack([x for x in items if isinstance(x, Tensor)])
        tables = [x for x in items if isinstance(x, dict)]
        return {k: torch.stack([x[k] for x in tables]) for k in tables[0]}

    def fingerprint(self) -> str:
        return self._content


@dataclass(frozen=True)
class Prepare:
    """From stored to model inputs: ``(x · scale − mean) / std``, by channel, in float32.

    ``mean`` and ``std`` are in the units of the scaled input: ``uint8`` (pixels) is scaled by
    1/255, ``int16`` (sound) by 1/32768; other integers are indices and stay as they are.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = x.float().div_(255.0)
        elif x.dtype == torch.int16:
            x = x.float().div_(32768.0)
        elif x.is_floating_point():
            x = x.float()
        return self.standardise(x)

    def standardise(self, x: Tensor) -> Tensor:
        """``(x − mean) / std`` by channel: the last step alone."""
        if not self.mean:
            return x
        mean, std = self._by_channel(x)
        return (x - mean) / std

    def undo(self, x: Tensor) -> Tensor:
        """``x · std + mean``: back to scaled inputs, pixels in [0, 1]."""
        if not self.mean:
            return x
        mean, std = self._by_channel(x)
        return x * std + mean

    def _by_channel(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Samples:
    """Labelled samples: the contract ``(id, x, y)``.

    ids: ``int64[n]`` or ``str[n]``, unique. labels: ``int64[n]`` in ``[0, c)``.
    classes: names of the ``c`` classes. inputs: by position. prepare: stored → model inputs, on
    whole batches. view: a random view of prepared inputs (augmentation), or None. has_explicit_ids:
    whether the ids came with the data (and so mean something elsewhere) or are positions.
    external_probs: class probabilities from elsewhere by name, ``float32[n, c]``: out-of-sample
    ones of
    models that did not see the sample (cross-validation), or means over the checkpoints of the
    training. trusted: ``bool[n]``, samples that are known to be right. features: of another encoder
    by name, ``float32[n, d]``, best of one that saw no labels; compared as the model's own layers
    are. All three are optional evidence.
    rate: samples a second, where the inputs are sound. skipped: what was left out of the source
    because it cannot be used, and why, by id; none of it is among the samples.
    id_root: the folder that the ids are paths in, resolved: equal ids in two folders are two
    samples.
    """

    ids: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    inputs: Inputs
    prepare: Prepare = field(default_factory=Prepare)
    view: View | None = None
    has_explicit_ids: bool = False
    name: str = "data"
    external_probs: Mapping[str, np.ndarray] = field(default_factory=dict)
    trusted: np.ndarray | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    sample_rate: int | None = None
    skipped: Mapping[Any, str] = field(default_factory=dict)
    id_root: str = ""

    def __post_init__(self) -> None:
        ids = np.array(self.ids)
        if ids.dtype.kind in "OU":
            ids = ids.astype(str)
        labels = np.array(self.labels)
        problems = []
        if len(ids) == 0:
            raise DataError("no samples", where=self.name, fix="check the path and the selection")
        if not len(ids) == len(labels) == len(self.inputs):
            problems.append(
                f"{len(ids)} ids, {len(labels)} labels and {len(self.inputs)} inputs do not match"
            )
        if ids.dtype.kind not in "iuU":
            problems.append(f"ids must be integers or strings, not {ids.dtype}")
        unique, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            problems.append(f"duplicate ids: {format_ids(unique[counts > 1])}")
        part = isinstance(self.inputs, _Subset)
        problems += _label_problems(labels, ids, len(self.classes), part)
        shape = (len(ids), len(self.classes))
        external_probs = {k: np.array(v, dtype=np.float32) for k, v in self.external_probs.items()}
        for key, p in external_probs.items():
            problems += _probability_problems(p, key, ids, shape)
        features = {k: np.array(v, dtype=np.float32) for k, v in self.features.items()}
        for key, values in features.items():
            problems += _feature_problems(values, key, ids)
        trusted = None if self.trusted is None else np.array(self.trusted)
        if trusted is not None and (trusted.shape, trusted.dtype) != (ids.shape, np.bool_):
            problems.append(
                f"trusted must be {len(ids)} truth values, not {trusted.dtype}{trusted.shape}"
            )
        raise_all(DataError, problems, where=self.name)
        labels = labels.astype(np.int64)
        ids.setflags(write=False)
        labels.setflags(write=False)
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "labels", labels)
        for array in (
            *external_probs.values(),
            *features.values(),
            *([] if trusted is None else [trusted]),
        ):
            array.setflags(write=False)
        object.__setattr__(self, "external_probs", external_probs)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "trusted", trusted)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, positions: np.ndarray, *, device: torch.device | str = "cpu") -> Batch:
        """Prepared inputs at these positions, on the device; not finite values are an error."""
        stored = self.inputs.batch(positions)
        if isinstance(stored, dict):
            prepared: Batch = {k: v.to(device) for k, v in stored.items()}
            floats = [v for v in prepared.values() if v.is_floating_point()]
        else:
            prepared = self.prepare(stored.to(device, non_blocking=True))
            floats = [prepared]
        for x in floats:
            # The sum is finite unless a value is not: one pass, no temporary.
            if not torch.isfinite(x.sum()):
                bad = ~torch.isfinite(x.flatten(1)).all(1)
                if not bad.any():  # the sum of many numbers of few bits
                    continue
                ids = self.ids[positions][bad.cpu().numpy()]
                raise DataError(
                    f"inputs are NaN or infinite: ids {format_ids(ids)}",
                    where=self.name,
                    fix="remove or repair these samples",
                )
        return prepared

    def batches(
        self, batch_size: int, *, positions: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """Positions in order, cut into batches."""
        order = np.arange(len(self)) if positions is None else positions
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]

    def example(self) -> Batch:
        """The first two inputs, prepared: enough to trace a model."""
        return self.batch(np.arange(min(2, len(self))))

    def subset(self, positions: np.ndarray) -> Samples:
        """The samples at these positions; they may all have one label, as flagged ones do."""
        return replace(
            self,
            ids=self.ids[positions],
            labels=self.labels[positions],
            inputs=_Subset(self.inputs, np.asarray(positions)),
            external_probs={k: p[positions] for k, p in self.external_probs.items()},
            trusted=None if self.trusted is None else self.trusted[positions],
            features={k: f[positions] for k, f in self.features.items()},
        )

    def resident(self, device: torch.device) -> Samples:
        """The same samples with their inputs on a GPU, if they are one tensor that fits into half
        of its free memory: no batch is copied there again.
        """
        inputs = self.inputs
        if device.type != "cuda" or not isinstance(inputs, TensorInputs):
            return self
        if inputs.tensor.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return replace(self, inputs=TensorInputs(inputs.tensor.to(device)))

    def fingerprint(self) -> dict[str, str]:
        """Content hashes, by part, so that a change can be named."""
        return {
            "ids": _hash(self.ids),
            "labels": _hash(self.labels),
            "classes": hashlib.sha256("\x1f".join(self.classes).encode()).hexdigest(),
            "inputs": self.inputs.fingerprint(),
            "preparation": hashlib.sha256(repr(self.prepare).encode()).hexdigest(),
            "view": "" if self.view is None else digest(content_of(self.view)),
            **{f"external_probs.{k}": _hash(p) for k, p in self.external_probs.items()},
            **({} if self.trusted is None else {"trusted": _hash(self.trusted)}),
            **{f"features.{k}": _hash(f) for k, f in self.features.items()},
            **({} if self.sample_rate is None else {"sample_rate": str(self.sample_rate)}),
        }


class _Subset:
    def __init__(self, inputs: Inputs, positions: np.ndarray) -> None:
        self._inputs, self._positions = inputs, positions

    def __len__(self) -> int:
        return len(self._positions)

    def batch(self, positions: np.ndarray) -> Batch:
        return self._inputs.batch(self._positions[positions])

    def fingerprint(self) -> str:
        return hashlib.sha256(
            (self._inputs.fingerprint() + _hash(self._positions)).encode()
        ).hexdigest()


def _hash(array: np.ndarray) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _probability_problems(
    p: np.ndarray, name: str, ids: np.ndarray, shape: tuple[int, int]
) -> list[str]:
    if p.shape != shape:
        return [f"probabilities '{name}' have shape {p.shape}, expected {shape}"]
    bad = ~((p >= 0).all(axis=1) & np.isclose(p.sum(axis=1), 1.0, atol=1e-3))
    if bad.any():
        return [
            f"probabilities '{name}' are negative or do not sum to 1: ids {format_ids(ids[bad])}"
        ]
    return []


def _feature_problems(values: np.ndarray, name: str, ids: np.ndarray) -> list[str]:
    if values.ndim != 2 or len(values) != len(ids) or not values.shape[1]:
        return [f"features '{name}' have shape {values.shape}, expected ({len(ids)}, d)"]
    bad = ~np.isfinite(values).all(axis=1)
    return (
        [f"features '{name}' are NaN or infinite: ids {format_ids(ids[bad])}"] if bad.any() else []
    )


def _label_problems(labels: np.ndarray, ids: np.ndarray, classes: int, part: bool) -> list[str]:
    """What is wrong with the labels; those of a part need not differ."""
    if labels.ndim != 1:
        return [f"labels must be one number a sample, not an array of shape {labels.shape}"]
    if labels.dtype.kind == "f":
        bad = ~np.isfinite(labels)
        if bad.any():
            return [
                f"labels are NaN or infinite: ids {format_ids(ids[: len(bad)][bad[: len(ids)]])}"
            ]
        if (labels != np.round(labels)).any():
            return ["labels must be integers; got fractions"]
    elif labels.dtype.kind not in "iu":
        return [f"labels must be integers, not {labels.dtype}"]
    problems = []
    if classes < 2:
        problems.append(f"{classes} class(es): a classifier needs two or more")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        problems.append(
            f"labels outside 0…{classes - 1}: {format_ids(np.unique(labels[outside]))} "
            f"(ids {format_ids(ids[: len(outside)][outside[: len(ids)]])})"
        )
    elif len(labels) and len(np.unique(labels)) < 2 and not part:
        problems.append("all samples have the same label: there is nothing to tell apart")
    return problems
