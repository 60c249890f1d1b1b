"""The one form in which the stages read data: ids, labels, and inputs by position.

A source (one module each in this package) reads a user's data into `Samples`. Inputs that fit into
memory are decoded once and kept as one tensor; others are read batch by batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
import torch

from expunge.data.checks import (
    feature_problems,
    id_problems,
    label_problems,
    probability_problems,
    text_problems,
    trusted_problems,
)
from expunge.data.classes import encode_labels, is_numbered
from expunge.data.decoding import Decoding
from expunge.data.inputs import (
    Batch,
    DictInputs,
    Inputs,
    SubsetInputs,
    TensorInputs,
    announce,
    describe_inputs,
    hash_array,
)
from expunge.data.preparation import Preparation
from expunge.errors import DataError, format_ids, raise_all
from expunge.storage.hashing import content_of, digest

# A random view (augmentation) of a batch of prepared inputs, drawn from a CPU generator. One for
# tensors takes no dictionaries, and the other way round.
View: TypeAlias = Callable[[Any, torch.Generator], Any]


@dataclass(frozen=True)
class Samples:
    """Labelled samples: ids ``[n]``, labels ``[n]`` of ``c`` classes, inputs by position.

    Make them with `from_arrays`, `from_dataset` or `read`. Arrays are copied and read-only.

    Parameters
    ----------
    ids
        ``int64[n]`` or ``str[n]``, unique. Every table of the library is keyed by them.
    labels
        ``int64[n]`` in ``[0, c)``: the labels given, some of which may be wrong.
    classes
        The names of the ``c`` classes, two or more.
    inputs
        The stored inputs.
    prepare
        Turns a stored batch into model inputs.
    view
        A random view (augmentation) of prepared inputs, or None.
    has_explicit_ids
        Whether the ids came with the data, and so identify samples in other files too. Otherwise
        they are positions.
    name
        How messages call the data.
    external_probs
        Class probabilities of other models by name, ``float32[n, c]``: of models that did not train
        on the sample (cross-validation), or means over the checkpoints of the training. Optional
        evidence.
    trusted
        ``bool[n]``: samples that are known to be right. Optional evidence.
    features
        Features of other encoders by name, ``float32[n, d]``, best of one that was trained without
        labels. The input detectors use them as they use the model's own layers. Optional evidence.
    sample_rate
        Hz, if the inputs are audio.
    skipped
        The samples of the source that cannot be used, and why, by id. They are not among the
        samples.
    id_root
        The folder, resolved, that the ids are paths in. Equal ids in two folders are two samples.
    decoding
        How the inputs were made from files, if they were.
    columns
        The names of the columns of a table, in the order of the inputs, if they are known.

    Raises
    ------
    DataError
        If there are no samples, lengths differ, ids repeat, labels are no class indices, or an
        array has another shape, type or range. All problems come in one error.

    Examples
    --------
    >>> from expunge.data import from_arrays
    >>> samples = from_arrays(np.eye(3, dtype=np.float32), [0, 1, 1], ids=["a", "b", "c"])
    >>> samples.batch(np.array([1]))
    tensor([[0., 1., 0.]])
    >>> samples.subset(np.array([0, 2])).ids.tolist()
    ['a', 'c']
    """

    ids: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    inputs: Inputs
    prepare: Preparation = field(default_factory=Preparation)
    view: View | None = None
    has_explicit_ids: bool = False
    name: str = "data"
    external_probs: Mapping[str, np.ndarray] = field(default_factory=dict)
    trusted: np.ndarray | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    sample_rate: int | None = None
    skipped: Mapping[int | str, str] = field(default_factory=dict)
    id_root: str = ""
    decoding: Decoding | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids, labels = np.array(self.ids), np.array(self.labels)
        if ids.dtype.kind in "OU":
            ids = ids.astype(str)
        if len(ids) == 0:
            raise DataError("no samples", where=self.name, fix="check the path and the selection")
        external_probs = {k: np.array(v, dtype=np.float32) for k, v in self.external_probs.items()}
        features = {k: np.array(v, dtype=np.float32) for k, v in self.features.items()}
        trusted = None if self.trusted is None else np.array(self.trusted)
        problems = self._problems(ids, labels)
        for name, p in external_probs.items():
            problems += probability_problems(p, name, ids, (len(ids), len(self.classes)))
        for name, values in features.items():
            problems += feature_problems(values, name, ids)
        problems += trusted_problems(trusted, len(ids))
        raise_all(DataError, problems, where=self.name)
        labels = labels.astype(np.int64)
        arrays = [ids, labels, *external_probs.values(), *features.values()]
        for array in arrays if trusted is None else [*arrays, trusted]:
            array.setflags(write=False)
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "external_probs", external_probs)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "trusted", trusted)

    def _problems(self, ids: np.ndarray, labels: np.ndarray) -> list[str]:
        """What is wrong with ids, labels and the number of inputs."""
        problems = []
        if not len(ids) == len(labels) == len(self.inputs):
            problems.append(
                f"{len(ids)} ids, {len(labels)} labels and {len(self.inputs)} inputs do not match"
            )
        problems += id_problems(ids)
        problems += text_problems(ids, "ids") + text_problems(self.classes, "class names")
        return problems + label_problems(labels, ids, len(self.classes))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"Samples({len(self):,} samples, classes {format_ids(self.classes)}, "
            f"inputs {describe_inputs(self.inputs)})"
        )

    def batch(self, positions: np.ndarray, *, device: torch.device | str = "cpu") -> Batch:
        """Read the inputs at these positions and prepare them, on the device.

        Raises
        ------
        DataError
            If an input is NaN or infinite; it names the ids.
        """
        stored = self.inputs.batch(positions)
        if isinstance(stored, dict):
            # As a single input, floats of all sizes are float32; integers are indices.
            prepared: Batch = {
                k: v.to(device, torch.float32 if v.is_floating_point() else v.dtype)
                for k, v in stored.items()
            }
            floats = [v for v in prepared.values() if v.is_floating_point()]
        else:
            prepared = self.prepare(stored.to(device, non_blocking=True))
            # Integers are finite; a check would wait for the GPU.
            floats = [prepared] if stored.is_floating_point() else []
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
                    fix="remove or repair these samples; float32 holds no number beyond 3e38",
                )
        return prepared

    def check_finite(self) -> None:
        """Raise DataError if an input in memory is NaN or infinite, as `batch` does; one pass."""
        inputs = self.inputs
        while isinstance(inputs, SubsetInputs):
            inputs = inputs.inputs
        if isinstance(inputs, DictInputs) or (
            isinstance(inputs, TensorInputs) and inputs.tensor.is_floating_point()
        ):
            for positions in self.batches(4096):
                self.batch(positions)

    def batches(
        self, batch_size: int, *, positions: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """Split positions (all, by default) into batches, in order.

        Worker processes, if there are any, decode the batch after the one that is in use.
        """
        order = np.arange(len(self)) if positions is None else positions
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        for part, following in zip_longest(parts, parts[1:]):
            self.announce(part)
            if following is not None:
                self.announce(following)
            yield part

    def announce(self, positions: np.ndarray) -> None:
        """Say which batch will be read soon: worker processes begin to decode it."""
        announce(self.inputs, positions)

    def example(self) -> Batch:
        """Read the first two inputs, prepared: enough to trace a model."""
        return self.batch(np.arange(min(2, len(self))))

    def subset(self, positions: np.ndarray) -> Samples:
        """Select the samples at these positions. They may all have the same label."""
        return replace(
            self,
            ids=self.ids[positions],
            labels=self.labels[positions],
            inputs=SubsetInputs(self.inputs, np.asarray(positions)),
            external_probs={k: p[positions] for k, p in self.external_probs.items()},
            trusted=None if self.trusted is None else self.trusted[positions],
            features={k: f[positions] for k, f in self.features.items()},
        )

    def with_classes(self, classes: Sequence[str]) -> Samples:
        """Express the labels as indices of these classes: by name, see `encode_labels`.

        Raises
        ------
        DataError
            If a label or a column of the external probabilities is none of the classes, or the
            classes are numbers and those of these samples are names.
        """
        classes = tuple(classes)
        if classes == self.classes:
            return self
        if is_numbered(classes) and not is_numbered(self.classes):
            raise DataError(
                f"has the classes {format_ids(self.classes)}, the training set has "
                f"{format_ids(classes)}",
                where=self.name,
                fix="give both the same: classes=… of expunge.from_dataset or from_arrays",
            )
        names = () if is_numbered(self.classes) else self.classes
        labels, _ = encode_labels(
            self.labels, self.ids, names=names, classes=classes, where=self.name
        )
        if not self.external_probs:
            return replace(self, labels=labels, classes=classes)
        own = np.arange(len(self.classes))
        columns, _ = encode_labels(own, own, names=names, classes=classes, where=self.name)
        probs = {k: np.zeros((len(self), len(classes))) for k in self.external_probs}
        for name, p in self.external_probs.items():
            probs[name][:, columns] = p
        return replace(self, labels=labels, classes=classes, external_probs=probs)

    def to_device(self, device: torch.device) -> Samples:
        """Move the inputs to a GPU once, if they are one tensor that fits into half of its memory.

        Otherwise, and on a CPU, the samples are returned as they are.
        """
        inputs = self.inputs
        if device.type != "cuda" or not isinstance(inputs, TensorInputs):
            return self
        if inputs.tensor.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return replace(self, inputs=TensorInputs(inputs.tensor.to(device)))

    def fingerprint(self) -> dict[str, str]:
        """Hash the content part by part, so that a message can name the part that changed."""
        return {
            "ids": hash_array(self.ids),
            "labels": hash_array(self.labels),
            "classes": hashlib.sha256("\x1f".join(self.classes).encode()).hexdigest(),
            "inputs": self.inputs.fingerprint(),
            "preparation": hashlib.sha256(repr(self.prepare).encode()).hexdigest(),
            "view": "" if self.view is None else digest(content_of(self.view)),
            **{f"external_probs.{k}": hash_array(p) for k, p in self.external_probs.items()},
            **({} if self.trusted is None else {"trusted": hash_array(self.trusted)}),
            **{f"features.{k}": hash_array(f) for k, f in self.features.items()},
            **({} if self.sample_rate is None else {"sample_rate": str(self.sample_rate)}),
        }
