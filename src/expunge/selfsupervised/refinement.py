"""Labels refined in rounds, starting from an encoder that never used one.

For label noise that depends on the input, which a network learns as easily as what is right. After
arXiv 2412.04898, of which the abstract and a summary were readable: SimCLR, then rounds of
trainings whose consensus and loss decide which labels stand and which are replaced, under stronger
augmentation from round to round. All numbers are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Floats, Ints
from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge._core.rng import derive, temp_seed
from expunge.data import DataLike, Samples, View, as_samples
from expunge.detection.signals import collect
from expunge.errors import ConfigError, check_range, did_you_mean
from expunge.models.calls import module_named
from expunge.models.checks import check_model
from expunge.models.copying import copy_model
from expunge.models.inspection import find_head
from expunge.selfsupervised.augmentation import SimCLRAugmentation
from expunge.selfsupervised.labels import LabelUpdate, update_labels
from expunge.selfsupervised.simclr import SETTINGS as SIMCLR_SETTINGS
from expunge.selfsupervised.simclr import SimclrConfig, compatible_config, pretrain
from expunge.storage.artefacts import Artefact
from expunge.storage.run_folder import Run, open_run
from expunge.storage.weights import fit_weights, model_fingerprint, state_of
from expunge.training.baselines import trainers
from expunge.training.loop import Checkpoint, TuneConfig, tune
from expunge.training.targets import Targets

LossName = Literal["cross-entropy", "softmax-weighted"]
FinalMethod = Literal["tune", "divide-mix"]
_LOSSES, _FINAL_METHODS = get_args(LossName), get_args(FinalMethod)


@dataclass(frozen=True)
class RefineConfig:
    """Settings of a refinement of labels.

    Parameters
    ----------
    simclr
        Of the pre-training.
    n_rounds
        How often labels are updated, 1 or more.
    trainings_per_round
        Trainings of a round, one after the other, 1 or more. In each the learning rate rises and
        falls again, so that each ends with a converged network.
    epochs, first_round_epochs
        Epochs of each training; those of the first round.
    clean_quantile, relabel_fraction, min_relabel_confidence, uncertain_weight
        In [0, 1]; see `update_labels`.
    augmentation_strengths
        Strength of the augmentation in each round and, last, on the final labels, in [0, 1]. 0 uses
        the augmentation of the samples. A list that is too short repeats its last element.
    loss
        With ``"softmax-weighted"``, every sample is weighted by the probability that the network
        gave its label at the end of the previous training.
    restart
        Whether each round and the final training start from the encoder and a new head. Otherwise
        they start from the previous network.
    final_epochs
        Epochs of the training on the final labels.
    final_method
        Of the final training: `tune`, or DivideMix.
    tune
        Learning rate, batch size and optimiser of all trainings.

    Raises
    ------
    ConfigError
        If a value lies outside its interval.
    """

    simclr: SimclrConfig = field(default_factory=lambda: SIMCLR_SETTINGS["two-cores"])
    n_rounds: int = 4
    trainings_per_round: int = 3
    epochs: int = 3
    first_round_epochs: int = 8
    clean_quantile: float = 0.9
    relabel_fraction: float = 0.2
    min_relabel_confidence: float = 0.0
    uncertain_weight: float = 0.5
    augmentation_strengths: tuple[float, ...] = (0.0,)
    loss: LossName = "cross-entropy"
    restart: bool = False
    final_epochs: int = 12
    final_method: FinalMethod = "tune"
    tune: TuneConfig = field(default_factory=lambda: TuneConfig(targets="all", lr=0.1))

    @property
    def total_epochs(self) -> int:
        """Epochs of all trainings, without the pre-training."""
        in_rounds = self.first_round_epochs + (self.n_rounds - 1) * self.epochs
        return self.trainings_per_round * in_rounds + self.final_epochs

    def __post_init__(self) -> None:
        counts = ("n_rounds", "trainings_per_round", "epochs", "first_round_epochs", "final_epochs")
        fractions = (
            *("clean_quantile", "relabel_fraction"),
            *("min_relabel_confidence", "uncertain_weight"),
        )
        intervals = dict.fromkeys(counts, "[1, inf)") | dict.fromkeys(fractions, "[0, 1]")
        values = {f"refine.{name}": (getattr(self, name), i) for name, i in intervals.items()}
        check_range(ConfigError, values)
        for name, choices in (("loss", _LOSSES), ("final_method", _FINAL_METHODS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"refine.{name} is {getattr(self, name)!r}",
                    fix=did_you_mean(str(getattr(self, name)), choices),
                )
        strengths = self.augmentation_strengths
        if not strengths or not all(0 <= s <= 1 for s in strengths):
            raise ConfigError(
                f"refine.augmentation_strengths must be one or more in [0, 1], not {strengths}"
            )


# two-cores: minutes on a CPU; with so few epochs stronger augmentation does not help. gpu: as long
# as papers train.
SETTINGS: Mapping[str, RefineConfig] = {
    "two-cores": RefineConfig(),
    "gpu": RefineConfig(
        simclr=SIMCLR_SETTINGS["published"],
        trainings_per_round=5,
        epochs=6,
        first_round_epochs=6,
        augmentation_strengths=(0.0, 0.2, 0.4, 0.6, 0.4),
        restart=True,
        final_epochs=200,
    ),
}


class Round(NamedTuple):
    """A round: the network trained on the labels before it, and the labels after it."""

    model: nn.Module
    update: LabelUpdate


@dataclass(frozen=True)
class Refined:
    """The result of a refinement.

    Parameters
    ----------
    model
        Trained on the final labels.
    encoder
        The pre-trained network from which all rounds started.
    rounds
        One entry for each round.
    seconds
        Wall-clock time by stage: ``"simclr"``, ``"rounds/1"`` …, ``"5-tune"``.
    """

    model: nn.Module
    encoder: nn.Module
    rounds: tuple[Round, ...]
    seconds: dict[str, float]

    @property
    def labels(self) -> Ints:
        """``int64[n]``, the final labels."""
        return self.rounds[-1].update.labels


@isolated
def refine(
    model: nn.Module,
    samples: DataLike,
    config: RefineConfig | None = None,
    *,
    encoder: nn.Module | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Refined:
    """Pre-train a classifier's body without labels, refine the labels in rounds, train on these.

    Parameters
    ----------
    model
        A classifier of images with a linear head. The pre-training starts from its weights. It is
        not changed.
    samples
        Images with noisy labels.
    config
        ``two-cores`` of `SETTINGS` by default.
    encoder
        A network that is pre-trained already; then `pretrain` is not called.
    seed
        Decides the order, the augmentation and new heads.
    out
        A run folder. An interrupted refinement resumes from it.
    overwrite
        Whether to discard what is in the folder.
    progress
        Called after every step.

    Returns
    -------
    Refined
        The network, the encoder, the rounds and the seconds.

    Raises
    ------
    ModelError
        If no linear layer makes the logits, or a loss is not finite.

    Notes
    -----
    Cost: two plain epochs for each epoch of the pre-training, the epochs of all trainings, and a
    forward pass after each training. It fails if the classes do not form clusters in the encoder's
    features.

    References
    ----------
    arXiv:2412.04898.

    Examples
    --------
    >>> from expunge.data import from_arrays
    >>> images = np.random.default_rng(0).random((8, 1, 6, 6), dtype=np.float32)
    >>> samples = from_arrays(images, np.arange(8) % 2)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> config = RefineConfig(
    ...     n_rounds=1, trainings_per_round=1, first_round_epochs=1, final_epochs=1
    ... )
    >>> refine(network, samples, config, encoder=network).labels.shape
    (8,)
    """
    config, samples = config or RefineConfig(), as_samples(samples)
    check_model(encoder or model)
    header = {
        "refinement": asdict(config),
        "seed": seed,
        "model": model_fingerprint(encoder or model),
        "encoder": encoder is not None,
        "train": samples.fingerprint(),
    }
    with open_run(out, header, overwrite=overwrite) as run:
        seconds = {}
        if encoder is None:
            folder = None if out is None else Path(out) / "encoder"
            encoder, seconds["simclr"] = pretrain(
                model,
                samples,
                config.simclr,
                seed=seed,
                out=folder,
                overwrite=overwrite,
                progress=progress,
            )
        refinement = _Refinement(run, encoder, samples, config, seed, progress)
        rounds: list[Round] = []
        for number in range(config.n_rounds):
            rounds.append(refinement.run_round(number, rounds[-1] if rounds else None))
        final = refinement.run_final(rounds[-1])
        return Refined(final, encoder, tuple(rounds), seconds | run.seconds)


@trainers.register("ssl-refine")
def ssl_refine(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float = 0.0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    what: str = "train",
) -> nn.Module:
    """Train by `refine`, from a checkpoint whose labels are not used.

    Parameters
    ----------
    model
        A classifier of images with a linear head. Its weights are the start of the pre-training.
    samples
        Images with noisy labels.
    config
        Settings of every training of the refinement. Its epochs are distributed over the trainings
        in the proportions of `RefineConfig`, which has 63.
    seed, progress
        As in `refine`.
    rate, checkpoint, what
        Not used. An interrupted training starts again.

    Returns
    -------
    nn.Module
        The network trained on the refined labels, in evaluation mode.

    Notes
    -----
    Cost and failures: see `refine`.

    References
    ----------
    arXiv:2412.04898.
    """
    default = RefineConfig()
    simclr = compatible_config(SIMCLR_SETTINGS["two-cores"], model, samples)
    factor = config.n_epochs / default.total_epochs
    epochs, first, final = (
        max(1, round(factor * n))
        for n in (default.epochs, default.first_round_epochs, default.final_epochs)
    )
    chosen = replace(
        default,
        simclr=simclr,
        tune=config,
        epochs=epochs,
        first_round_epochs=first,
        final_epochs=final,
    )
    return refine(model, samples, chosen, seed=seed, progress=progress).model


@dataclass(frozen=True)
class _Refinement:
    """What the rounds share."""

    run: Run
    encoder: nn.Module
    samples: Samples
    config: RefineConfig
    seed: int
    progress: Progress

    def run_round(self, number: int, previous: Round | None) -> Round:
        """Train on the labels of the previous round, and update these."""
        name = f"rounds/{number + 1}"

        def compute() -> Artefact:
            model, update = self._train_and_update(number, name, previous)
            arrays = {k: torch.from_numpy(v) for k, v in vars(update).items()}
            return Artefact(tensors={**_with_prefix(model), **arrays})

        artefact = self.run.stage(name, {"reads": dict(self.run.keys)}, compute)
        fields = ("labels", "weights", "clean", "relabelled")
        update = LabelUpdate(**{k: artefact.tensors[k].numpy() for k in fields})
        return Round(_with_weights(self.encoder, artefact, name), update)

    def _train_and_update(
        self, number: int, name: str, previous: Round | None
    ) -> tuple[nn.Module, LabelUpdate]:
        config = self.config
        labels, weights = np.array(self.samples.labels), np.ones(len(self.samples))
        if previous is not None:
            labels, weights = previous.update.labels, previous.update.weights
        if previous is None or config.restart:
            model = with_new_head(self.encoder, self.samples, derive(self.seed, name))
        else:
            model = previous.model
        is_weighted, probs = config.loss == "softmax-weighted", list[Floats]()
        if is_weighted and previous is not None:
            probs.append(_predict_probs(previous.model, self.samples))
        augmented = with_augmentation(self.samples, _strength(config, number))
        epochs = config.epochs if previous else config.first_round_epochs
        for training in range(config.trainings_per_round):
            at_label = probs[-1][np.arange(len(labels)), labels] if is_weighted and probs else 1.0
            model = tune(
                model,
                augmented,
                _targets(labels, weights * at_label),
                replace(config.tune, epochs=epochs),
                seed=derive(self.seed, name, training),
                progress=self.progress,
                what=name,
            )
            probs.append(_predict_probs(model, self.samples))
        update = update_labels(
            np.stack(probs[-config.trainings_per_round :]),
            labels,
            clean_quantile=config.clean_quantile,
            relabel_fraction=config.relabel_fraction,
            min_relabel_confidence=config.min_relabel_confidence,
            uncertain_weight=config.uncertain_weight,
        )
        return model, update

    def run_final(self, last: Round) -> nn.Module:
        """Train on the final labels."""

        def compute() -> Artefact:
            model = train_final(
                self.samples,
                last,
                self.encoder,
                self.config,
                seed=self.seed,
                progress=self.progress,
            )
            return Artefact(tensors=_with_prefix(model))

        artefact = self.run.stage("5-tune", {"reads": dict(self.run.keys)}, compute)
        return _with_weights(self.encoder, artefact, "5-tune")


def train_final(
    samples: Samples,
    last: Round,
    encoder: nn.Module,
    config: RefineConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """Train a network on the labels of the last round.

    Parameters
    ----------
    samples
        The samples; their labels are not used.
    last
        The last round. The training starts from its network, or with ``config.restart`` from the
        encoder and a new head.
    encoder
        The pre-trained network.
    config
        ``final_method`` and ``final_epochs`` decide. DivideMix uses all samples with their refined
        labels and not their weights.
    seed, progress
        As in `refine`.

    Returns
    -------
    nn.Module
        The network, in evaluation mode.
    """
    what, update = "last", last.update
    own_seed, settings = derive(seed, what), replace(config.tune, epochs=config.final_epochs)
    model = with_new_head(encoder, samples, own_seed) if config.restart else last.model
    augmented = with_augmentation(samples, _strength(config, config.n_rounds))
    if config.final_method == "divide-mix":
        train = trainers.get("divide-mix")
        relabelled = replace(augmented, labels=update.labels)
        return train(
            model, relabelled, settings, seed=own_seed, rate=0.0, progress=progress, what=what
        )
    targets = _targets(update.labels, update.weights)
    return tune(model, augmented, targets, settings, seed=own_seed, progress=progress, what=what)


@dataclass(frozen=True)
class _Composed:
    """One augmentation after another."""

    first: View
    second: View

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        seen: Tensor = self.second(self.first(x, generator), generator)
        return seen


def with_augmentation(samples: Samples, strength: float) -> Samples:
    """Add crops and colour changes to the augmentation of samples; strength 0 adds nothing."""
    if not strength:
        return samples
    view: View = SimCLRAugmentation(
        strength=strength,
        area=(1 - 0.8 * strength, 1.0),
        grey=0.2 * strength,
        prepare=samples.prepare,
    )
    return replace(samples, view=_Composed(samples.view, view) if samples.view else view)


def with_new_head(model: nn.Module, samples: Samples, seed: int) -> nn.Module:
    """Return a copy of a classifier whose last linear layer is initialised again."""
    fix = "use a model with a linear head"
    head = find_head(model, samples.example(), where="refine", fix=fix)
    copied = copy_model(model)
    reset: Callable[[], None] = module_named(copied, head).reset_parameters  # type: ignore[assignment]
    with temp_seed(seed, "head"):
        reset()
    return copied


def _strength(config: RefineConfig, number: int) -> float:
    strengths = config.augmentation_strengths
    return strengths[min(number, len(strengths) - 1)]


def _targets(labels: Ints, weights: Floats) -> Targets:
    positions = np.flatnonzero(weights > 0)
    return Targets(positions, labels[positions], weights[positions])


def _predict_probs(model: nn.Module, samples: Samples) -> Floats:
    """Return class probabilities on plain inputs, ``float64[n, c]``."""
    from scipy.special import softmax

    logits = collect(model, samples, what="refine").logits
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1))


def _with_prefix(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{k}": v for k, v in state_of(model).items()}


def _with_weights(model: nn.Module, artefact: Artefact, where: str) -> nn.Module:
    tensors = artefact.tensors.items()
    copied = copy_model(model)
    weights = {k.removeprefix("model."): v for k, v in tensors if k.startswith("model.")}
    fit_weights(copied, weights, where=where)
    return copied.eval()
