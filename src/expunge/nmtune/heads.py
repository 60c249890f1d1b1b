"""Fit, apply, save and load a head on frozen features (arXiv 2309.17002)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge._core.rng import derive, temp_seed
from expunge.config import build
from expunge.data import Labels, from_arrays
from expunge.data.checks import require_two_labels
from expunge.errors import (
    ConfigError,
    DataError,
    ModelError,
    check_range,
    did_you_mean,
    format_ids,
)
from expunge.models.calls import find_device
from expunge.nmtune.networks import Head, ViewHead, input_scale
from expunge.nmtune.objectives import PRESETS, NMTuneConfig
from expunge.nmtune.spectra import check_features, singular_values
from expunge.nmtune.training import choose_two_views, train_head
from expunge.storage.array_files import read_tensors, save_tensors
from expunge.storage.atomic_files import make_folder
from expunge.storage.reading import reading
from expunge.storage.weights import fit_weights
from expunge.training.checkpoints import Checkpoint
from expunge.training.steps import Step

Preset = Literal["linear", "mlp", "paper", "code"]
HEAD_FILE, FORMAT_VERSION = "nmtune.safetensors", 3
# Rows that a head reads at once.
BATCH_SIZE = 4096
# Rows that the singular spectrum is computed of, at most.
MAX_SPECTRUM_ROWS = 5000
_FIX = "run `expunge nmtune fit` again"


@dataclass(frozen=True)
class Trial:
    """The result of a learning rate on held-out samples, averaged over their views.

    Parameters
    ----------
    learning_rate
        Above 0.
    accuracy
        In [0, 1].
    loss
        Cross-entropy in nats, 0 or more.
    """

    learning_rate: float
    accuracy: float
    loss: float

    @property
    def rank(self) -> tuple[float, float, float]:
        """Higher is better: by loss, then by accuracy, then by the smaller learning rate.

        On a few hundred samples the loss varies less than the accuracy.
        """
        return -self.loss, self.accuracy, -self.learning_rate


@dataclass(frozen=True)
class NMTune:
    """A head that was fitted to embeddings, of any encoder.

    Make one with `fit` or `load`.

    Parameters
    ----------
    head
        The network, in evaluation mode.
    config
        Its settings.
    classes
        The names of the classes, in order.
    learning_rate
        The learning rate that was chosen.
    trials
        The results of all learning rates on the held-out part; empty if there is only one.
    spectra
        ``float64[min(n, d)]``: singular values of the ``features`` as given and ``transformed``, of
        held-out samples if there are any.

    References
    ----------
    Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks,
    https://arxiv.org/abs/2309.17002.

    Examples
    --------
    >>> features = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    >>> labels = (features[:, 0] > 0).astype(int)
    >>> config = NMTuneConfig(hidden=False, learning_rates=(0.1,), epochs=20)
    >>> fitted = NMTune.fit(features, labels, config=config)
    >>> bool((fitted.predict(features) == labels).mean() > 0.9)
    True
    """

    head: Head
    config: NMTuneConfig
    classes: tuple[str, ...]
    learning_rate: float
    trials: tuple[Trial, ...]
    spectra: Mapping[str, np.ndarray]

    @classmethod
    @isolated
    def fit(
        cls,
        features: np.ndarray,
        labels: Labels,
        *,
        preset: Preset = "paper",
        config: NMTuneConfig | None = None,
        held_out: float = 0.2,
        classes: Sequence[str] = (),
        seed: int = 0,
        device: str = "cpu",
        checkpoints: Callable[[str], Checkpoint | None] | None = None,
        progress: Progress = silent,
    ) -> NMTune:
        """Choose a learning rate on a held-out part, then train on all samples with it.

        Parameters
        ----------
        features
            ``float[n, d]``, or ``float[v, n, d]`` for v views of every sample. A batch has two of
            the views of each sample.
        labels
            ``[n]``: class indices or names.
        preset
            ``"paper"``, ``"code"`` (the published code), ``"mlp"`` (no regularisation) or
            ``"linear"`` (a linear probe).
        config
            Settings that replace the preset.
        held_out
            The fraction of the samples that is held out, by class, in (0, 1). The learning rate
            with the lowest cross-entropy there is chosen. With one learning rate nothing is held
            out.
        classes
            The names of the classes, by index.
        seed
            Draws the held-out part, the weights, the order and the views.
        device
            Where the head is trained.
        checkpoints
            Gives, by its name, the place of a training's state; an interrupted fit resumes from it.
        progress
            Called with the name of the training and the number of steps.

        Returns
        -------
        NMTune
            The fitted head.

        Raises
        ------
        DataError
            If features and labels do not match, are not finite, or a class is too small to hold
            samples out.
        ConfigError
            If there is no such preset or device, or ``held_out`` is out of range.
        ModelError
            If the loss is not finite.

        Notes
        -----
        Cost: ``learning_rates + 1`` trainings of ``epochs · n / batch_size`` steps, with ``16 d²``
        multiply-adds a sample and a singular value decomposition of ``[2 b, d]`` each.
        """
        chosen = config or _preset(preset)
        x, y, names = _check_data(features, labels, tuple(classes))
        views = torch.from_numpy(x).to(find_device(device))
        task = _Task(views, y, names, chosen, seed, progress, checkpoints)
        everything, learning_rate = np.arange(len(y)), chosen.learning_rates[0]
        trials: tuple[Trial, ...] = ()
        if len(chosen.learning_rates) > 1:
            fitted, others = _split(y, held_out, names, seed)
            learning_rate, trials, unseen = task.search(fitted, others)
            head = task.train(everything, learning_rate, "final")
        else:
            unseen = head = task.train(everything, learning_rate, "final")
            others = everything
        rows = views[0, others[:MAX_SPECTRUM_ROWS]]
        spectra = {"features": singular_values(rows.cpu().numpy())}
        with torch.inference_mode():
            spectra["transformed"] = singular_values(unseen.transform(rows).cpu().numpy())
        return cls(head, chosen, names, learning_rate, trials, spectra)

    @isolated
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Class probabilities ``float32[n, c]`` of features ``float[n, d]``."""
        return np.concatenate([self.head(f).softmax(dim=1).cpu() for f in self._batches(features)])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The most probable class, ``int64[n]``; the first of ties."""
        return np.asarray(self.probabilities(features).argmax(axis=1))

    def transform(self, features: np.ndarray) -> np.ndarray:
        """The features that the linear layer reads, ``float32[n, d]``."""
        parts = [self.head.transform(f).cpu() for f in self._batches(features)]
        return np.concatenate(parts)

    def _batches(self, features: np.ndarray) -> Iterator[Tensor]:
        x, width = check_features(features), self.head.linear.in_features
        if x.shape[1] != width:
            raise DataError(
                f"features have {x.shape[1]} columns, the head was fitted with {width}",
                fix="embed with the same encoder",
            )
        device = self.head.linear.weight.device
        with torch.inference_mode():
            for start in range(0, len(x), BATCH_SIZE):
                part = np.ascontiguousarray(x[start : start + BATCH_SIZE], dtype=np.float32)
                yield torch.from_numpy(part).to(device)

    def save(self, folder: str | Path) -> None:
        """Write ``nmtune.safetensors``, settings included; create the folder if necessary.

        Raises
        ------
        RunError
            If it cannot be written; a head that was there before is left as it was.
        """
        folder = Path(folder)
        make_folder(folder)
        tensors = {f"head.{k}": v for k, v in self.head.state_dict().items()}
        tensors |= {f"spectrum.{k}": torch.from_numpy(v) for k, v in self.spectra.items()}
        facts = {
            "version": FORMAT_VERSION,
            "width": self.head.linear.in_features,
            "classes": self.classes,
            "learning_rate": self.learning_rate,
            "trials": [asdict(trial) for trial in self.trials],
            "config": asdict(self.config),
        }
        save_tensors(folder / HEAD_FILE, tensors, facts)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> NMTune:
        """Load a saved head.

        Raises
        ------
        ModelError
            If the folder has no head, a damaged one, one that has changed, or one of another
            format.
        ConfigError
            If there is no such device.
        """
        where = str(Path(folder) / HEAD_FILE)
        tensors, facts = read_tensors(Path(where), error=ModelError, fix=_FIX)
        version = facts.get("version")
        if version != FORMAT_VERSION:
            raise ModelError(
                f"head format {version}, this version reads {FORMAT_VERSION}", where=where, fix=_FIX
            )
        with reading(where, ModelError, what="the head is damaged", fix=_FIX):
            names = tuple(map(str, facts["classes"]))
            trials = tuple(Trial(**t) for t in facts["trials"])
            learning_rate = float(facts["learning_rate"])
            config = build(NMTuneConfig, facts["config"], where=where)
            state = _with_prefix("head.", tensors)
            head = _make_head(int(facts["width"]), len(names), config, state)
            fit_weights(head, state, where=where)
        spectra = {k: v.numpy() for k, v in _with_prefix("spectrum.", tensors).items()}
        return cls(
            head.to(find_device(device)).eval(), config, names, learning_rate, trials, spectra
        )


@dataclass(frozen=True)
class _Task:
    """What all trainings share. views: ``float32[v, n, d]``."""

    views: Tensor
    labels: np.ndarray
    names: tuple[str, ...]
    config: NMTuneConfig
    seed: int
    progress: Progress
    checkpoints: Callable[[str], Checkpoint | None] | None

    def search(
        self, fitted: np.ndarray, others: np.ndarray
    ) -> tuple[float, tuple[Trial, ...], Head]:
        """The best learning rate on the held-out rows, all trials, and its head."""
        best: tuple[Trial, Head] | None = None
        trials = []
        for lr in self.config.learning_rates:
            head = self.train(fitted, lr, f"held-out-{lr:g}")
            trials.append(_evaluate(head, self.views[:, others], self.labels[others], lr))
            if best is None or trials[-1].rank > best[0].rank:
                best = trials[-1], head
        assert best is not None
        return best[0].learning_rate, tuple(trials), best[1]

    def train(self, rows: np.ndarray, learning_rate: float, name: str) -> Head:
        """Train a head on these rows; it ends in evaluation mode. name: of its checkpoint."""
        device, config = self.views.device, self.config
        scale = input_scale(self.views[:, rows])
        with temp_seed(self.seed, "nmtune", "head"):
            head = Head(self.views.shape[2], len(self.names), config, scale=scale).to(device)

        def inputs(step: Step, random: np.random.Generator) -> Tensor:
            views = choose_two_views(len(self.views), len(step.batch), random)
            picked = torch.from_numpy(views[:, step.own]).to(device)
            return self.views[picked, torch.from_numpy(rows[step.rows]).to(device)]

        train_head(
            ViewHead(head),
            inputs,
            self.labels[rows],
            config,
            learning_rate=learning_rate,
            seed=self.seed,
            checkpoint=self.checkpoints(name) if self.checkpoints else None,
            progress=self.progress,
        )
        return head


def _make_head(width: int, classes: int, config: NMTuneConfig, state: Mapping[str, Tensor]) -> Head:
    """Make a head; ValueError, before any memory is taken, if the tensors are not of its shapes."""
    with torch.device("meta"):
        expected = {k: v.shape for k, v in Head(width, classes, config).state_dict().items()}
    if expected != {k: v.shape for k, v in state.items()}:
        raise ValueError(f"its tensors are not those of {width} features and {classes} classes")
    return Head(width, classes, config)


def _preset(name: str) -> NMTuneConfig:
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'", fix=did_you_mean(name, PRESETS))
    return PRESETS[name]


def _check_data(
    features: np.ndarray,
    labels: Labels,
    classes: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """``float32[v, n, d]``, ``int64[n]``, and the names of the classes."""
    x = np.asarray(features)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3:
        raise DataError(f"expected features [n, d] or [v, n, d], got {list(x.shape)}")
    for view in x:
        check_features(view)
    samples = from_arrays(x[0], labels, classes=classes or None, name="nmtune")
    require_two_labels(samples.labels, where="nmtune")
    return np.ascontiguousarray(x, dtype=np.float32), np.array(samples.labels), samples.classes


def _split(
    y: np.ndarray, held_out: float, names: tuple[str, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and held-out rows, both in order."""
    from sklearn.model_selection import train_test_split

    check_range(ConfigError, {"held_out": (held_out, "(0, 1)")}, where="nmtune")
    counts = np.bincount(y, minlength=len(names))
    single = np.flatnonzero(counts == 1)
    present = int((counts > 0).sum())
    size = max(round(held_out * len(y)), present)
    if len(single) or len(y) - size < max(2, present):
        what = f"class {format_ids(names[c] for c in single)} has" if len(single) else "there are"
        raise DataError(
            f"{what} too few samples to hold some out",
            where="nmtune",
            fix="add samples, or give one learning rate",
        )
    split = train_test_split(
        np.arange(len(y)), test_size=size, stratify=y, random_state=derive(seed, "held out") % 2**32
    )
    fitted, others = (np.sort(part) for part in split)
    return fitted, others


@torch.inference_mode()
def _evaluate(head: Head, views: Tensor, labels: np.ndarray, learning_rate: float) -> Trial:
    """Evaluate a head on views ``float32[v, n, d]`` of samples with labels ``int64[n]``."""
    logits = torch.cat([head(part) for part in torch.split(views.flatten(0, 1), BATCH_SIZE)])
    y = torch.from_numpy(labels).to(logits.device).repeat(len(views))
    accuracy = float((logits.argmax(dim=1) == y).double().mean())
    return Trial(learning_rate, accuracy, float(nn.functional.cross_entropy(logits, y)))


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
