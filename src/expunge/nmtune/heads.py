"""NMTune: a small head that transforms frozen features and classifies them (arXiv 2309.17002)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from expunge._core.progress import Progress, silent
from expunge._core.rng import derive, temp_seed
from expunge.config import build
from expunge.data.arrays import from_arrays
from expunge.errors import ConfigError, DataError, ModelError, did_you_mean, format_ids
from expunge.nmtune.objectives import PRESETS, NMTuneConfig
from expunge.nmtune.spectra import checked, singular_values
from expunge.nmtune.training import ViewOutputs, choose_two_views, train_head
from expunge.storage.weights import fit_weights
from expunge.training.checkpoints import Checkpoint
from expunge.training.steps import Step

Preset = Literal["linear", "mlp", "paper", "code"]
NUMBERS, SETTINGS, VERSION = "nmtune.safetensors", "nmtune.json", 1
# Rows that go through a head at once, and rows of which the spectrum is taken at most.
TOGETHER, SPECTRUM = 4096, 5000


class Head(nn.Module):
    """``z = c f + g ⊙ MLP(c f)``, logits ``= W z + b``; without an MLP ``z = c f``.

    The MLP is Linear(d, r d) – BatchNorm – ReLU – Linear(r d, d); g is learned, from ones. From the
    published code; whether the paper's MLP has the residual path and the batch norm is not known to
    us. scale: the number c. Published is 1; ours makes the mean square of the features 1, so that
    a learning rate means the same for embeddings of every length.
    """

    def __init__(self, width: int, classes: int, config: NMTuneConfig, *, scale: float = 1.0):
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.mlp: nn.Module | None = None
        if config.hidden:
            inside = config.ratio * width
            self.mlp = nn.Sequential(
                nn.Linear(width, inside),
                nn.BatchNorm1d(inside),
                nn.ReLU(),
                nn.Linear(inside, width),
            )
            self.gate = nn.Parameter(torch.ones(width))
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.bias)

    def transform(self, f: Tensor) -> Tensor:
        """``float[b, d] → float[b, d]``."""
        f = f * self.scale
        return f if self.mlp is None else f + self.gate * self.mlp(f)

    def forward(self, f: Tensor) -> Tensor:
        return self.linear(self.transform(f))


@dataclass(frozen=True)
class Trial:
    """How a learning rate did on samples held out, the mean over their views.

    accuracy: in [0, 1]. loss: cross-entropy.
    """

    rate: float
    accuracy: float
    loss: float

    @property
    def rank(self) -> tuple[float, float, float]:
        """Higher is better: the loss, then accuracy, then the smaller rate.

        On some hundred samples the loss is the steadier of the two.
        """
        return -self.loss, self.accuracy, -self.rate


@dataclass(frozen=True)
class NMTune:
    """A fitted head, which takes embeddings and knows nothing of where they come from.

    rate: the learning rate that was chosen. trials: how all did on the part held out; () if there
    was one. spectra: singular values of the ``features`` as given and ``transformed``, of samples
    that the transformation did not see if some were held out.

    >>> fitted = NMTune.fit(embeddings, labels, preset="paper")  # doctest: +SKIP
    >>> fitted.predict(others)  # doctest: +SKIP
    """

    head: Head
    config: NMTuneConfig
    classes: tuple[str, ...]
    rate: float
    trials: tuple[Trial, ...]
    spectra: Mapping[str, np.ndarray]

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        labels: np.ndarray | Sequence[int] | Sequence[str],
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
        """Choose a learning rate on a part that is held out, then train on everything with it.

        features: ``float[n, d]``, or ``float[v, n, d]`` for v views of every sample, of which each
        batch draws two. labels: class indices or names, one a sample. config: instead of a preset,
        for other numbers. held_out: the share, drawn by class; the best rate has the lowest
        cross-entropy there. With one rate nothing is held out.
        classes: names by index. checkpoints: where the state of a training is kept, by its name; an
        interrupted fit resumes from it.

        DataError for what does not fit or is not finite, and for a class with one sample where some
        are held out. Cost: ``rates + 1`` trainings, each ``epochs · n / batch_size`` steps of
        ``16 d²`` multiply-adds a sample and a singular value decomposition ``[2 b, d]``.
        """
        chosen = config or _preset(preset)
        x, y, names = _data(features, labels, tuple(classes))
        views = torch.from_numpy(x).to(device)
        task = _Task(views, y, names, chosen, seed, progress, checkpoints)
        everything, rate = np.arange(len(y)), chosen.rates[0]
        trials: tuple[Trial, ...] = ()
        if len(chosen.rates) > 1:
            own, others = _apart(y, held_out, names, seed)
            rate, trials, unseen = task.searched(own, others)
            head = task.trained(everything, rate, "final")
        else:
            unseen = head = task.trained(everything, rate, "final")
            others = everything
        few = views[0, others[:SPECTRUM]]
        spectra = {"features": singular_values(few.cpu().numpy())}
        with torch.inference_mode():
            spectra["transformed"] = singular_values(unseen.transform(few).cpu().numpy())
        return cls(head, chosen, names, rate, trials, spectra)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """``float32[n, c]`` for features ``float[n, d]``, rows sum to 1."""
        return np.concatenate([self.head(f).softmax(dim=1).cpu() for f in self._batches(features)])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The most probable class by its index, ``int64[n]``; of ties the first."""
        return self.probabilities(features).argmax(axis=1)

    def transform(self, features: np.ndarray) -> np.ndarray:
        """The features that the linear layer reads, ``float32[n, d]``."""
        parts = [self.head.transform(f).cpu() for f in self._batches(features)]
        return np.concatenate(parts)

    def _batches(self, features: np.ndarray) -> Iterator[Tensor]:
        x, width = checked(features), self.head.linear.in_features
        if x.shape[1] != width:
            raise DataError(
                f"features have {x.shape[1]} columns, the head was fitted with {width}",
                fix="embed with the same encoder",
            )
        device = self.head.linear.weight.device
        with torch.inference_mode():
            for start in range(0, len(x), TOGETHER):
                part = np.ascontiguousarray(x[start : start + TOGETHER], dtype=np.float32)
                yield torch.from_numpy(part).to(device)

    def save(self, folder: str | Path) -> None:
        """Write ``nmtune.safetensors`` and ``nmtune.json`` into a folder, made if not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {f"head.{k}": v.cpu().contiguous() for k, v in self.head.state_dict().items()}
        numbers |= {f"spectrum.{k}": torch.from_numpy(v) for k, v in self.spectra.items()}
        save_file(numbers, folder / NUMBERS)
        facts = {
            "version": VERSION,
            "width": self.head.linear.in_features,
            "classes": self.classes,
            "rate": self.rate,
            "trials": [asdict(trial) for trial in self.trials],
            "config": asdict(self.config),
        }
        (folder / SETTINGS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> NMTune:
        """A head as it was saved; ModelError for a folder without one, or a damaged one."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            numbers = load_file(folder / NUMBERS)
            version, width, names = facts["version"], facts["width"], tuple(facts["classes"])
            trials = tuple(Trial(**t) for t in facts["trials"])
            rate, settings = float(facts["rate"]), facts["config"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"holds no head: {error}", where=str(folder), fix="`expunge nmtune fit`"
            ) from error
        if version != VERSION:
            raise ModelError(f"the head is of version {version}", where=str(folder), fix="fit it")
        config = build(NMTuneConfig, settings, where=str(folder / SETTINGS))
        head = Head(width, len(names), config)
        fit_weights(head, _under("head.", numbers), where=str(folder / NUMBERS))
        spectra = {k: v.numpy() for k, v in _under("spectrum.", numbers).items()}
        return cls(head.to(device).eval(), config, names, rate, trials, spectra)


@dataclass(frozen=True)
class _Task:
    """What does not change between trainings. views: ``float32[v, n, d]``."""

    views: Tensor
    labels: np.ndarray
    names: tuple[str, ...]
    config: NMTuneConfig
    seed: int
    progress: Progress
    checkpoints: Callable[[str], Checkpoint | None] | None

    def searched(
        self, own: np.ndarray, others: np.ndarray
    ) -> tuple[float, tuple[Trial, ...], Head]:
        """The best learning rate on the rows held out, all trials, and the head of that rate."""
        best: tuple[Trial, Head] | None = None
        trials = []
        for rate in self.config.rates:
            head = self.trained(own, rate, f"held-out-{rate:g}")
            trials.append(_trial(head, self.views[:, others], self.labels[others], rate))
            if best is None or trials[-1].rank > best[0].rank:
                best = trials[-1], head
        assert best is not None
        return best[0].rate, tuple(trials), best[1]

    def trained(self, rows: np.ndarray, rate: float, name: str) -> Head:
        """A head trained on these rows, in evaluation mode; name: of its checkpoint."""
        device, config = self.views.device, self.config
        scale = scale_of(self.views[:, rows])
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
            learning_rate=rate,
            seed=self.seed,
            checkpoint=self.checkpoints(name) if self.checkpoints else None,
            progress=self.progress,
        )
        return head


class ViewHead(nn.Module):
    """A head that takes the features of several views at once."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, f: Tensor) -> ViewOutputs:
        """From features ``[v, b, d]`` to these, transformed features and logits."""
        z = self.head.transform(f.flatten(0, 1))
        return f, z.view_as(f), self.head.linear(z).unflatten(0, f.shape[:2])


def _preset(name: str) -> NMTuneConfig:
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{name}'", fix=did_you_mean(name, PRESETS))
    return PRESETS[name]


def _data(
    features: np.ndarray,
    labels: np.ndarray | Sequence[int] | Sequence[str],
    classes: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """``float32[v, n, d]``, ``int64[n]``, and the names of the classes."""
    x = np.asarray(features)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3:
        raise DataError(f"expected features [n, d] or [v, n, d], got {list(x.shape)}")
    for view in x:
        checked(view)
    samples = from_arrays(x[0], labels, classes=classes or None, name="nmtune")
    return np.ascontiguousarray(x, dtype=np.float32), np.array(samples.labels), samples.classes


def scale_of(features: Tensor) -> float:
    """The number that makes their mean square 1; 1 if they are all zero."""
    size = float(features.double().square().mean().sqrt())
    return 1 / size if size > 0 else 1.0


def _apart(
    y: np.ndarray, share: float, names: tuple[str, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, both in order."""
    if not 0 < share < 1:
        raise ConfigError(f"held_out must lie in (0, 1), not {share}")
    counts = np.bincount(y, minlength=len(names))
    single = np.flatnonzero(counts == 1)
    present = int((counts > 0).sum())
    size = max(round(share * len(y)), present)
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
    own, others = (np.sort(part) for part in split)
    return own, others


@torch.inference_mode()
def _trial(head: Head, views: Tensor, labels: np.ndarray, rate: float) -> Trial:
    """views: ``float32[v, n, d]``. labels: ``int64[n]``."""
    logits = torch.cat([head(part) for part in views.flatten(0, 1).split(TOGETHER)])
    y = torch.from_numpy(labels).to(logits.device).repeat(len(views))
    accuracy = float((logits.argmax(dim=1) == y).double().mean())
    return Trial(rate, accuracy, float(nn.functional.cross_entropy(logits, y)))


def _under(prefix: str, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
