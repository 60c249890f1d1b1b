"""Labels refined in rounds, from an encoder that never saw one (after arXiv 2412.04898).

For label noise that depends on the image, which a network can learn as easily as what is right. Of
the paper the abstract and a summary were readable: SimCLR, then four rounds of training in stages,
whose consensus and loss decide which labels stand and which are replaced, under stronger
augmentation from round to round. All numbers here are our choice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn

from expunge._core.progress import Progress, silent
from expunge._core.rng import derive, temp_seed
from expunge.data import Samples, View
from expunge.detection.signals import collect
from expunge.errors import ConfigError, DataError
from expunge.models.inspection import check_model, find_head, module_named
from expunge.selfsupervised.simclr import SETTINGS as SIMCLR
from expunge.selfsupervised.simclr import SimCLRAugmentation, SimclrConfig, fitting, pretrain
from expunge.storage.run_folder import Artefact, Run, open_run
from expunge.storage.weights import fit_weights, model_fingerprint
from expunge.training.baselines import trainers
from expunge.training.loop import TuneConfig, tune
from expunge.training.targets import Targets


@dataclass(frozen=True)
class RefineConfig:
    """How labels are refined.

    simclr: the pre-training. rounds: how often labels are renewed. stages, of ``epochs`` epochs
    each (``first`` in the first round): the trainings of a round, one after the other; in each the
    learning rate rises and falls, so that each ends with a network that has settled. quantile,
    share, confidence, doubt: see `judge`. strengths: of the distortion in each round and, last, on
    the final labels; 0 is the samples' own view; too short a list goes on with its last. loss: with
    ``softmax-weighted`` every sample counts by the probability that the network gave its label at
    the end of the stage before. restart: whether every round and the last training begin with the
    encoder and a fresh head, or go on. last: epochs of the training on the final labels. finish:
    how, by `tuning.tune` or by DivideMix. tune: rate, batch size, optimiser of all of these.
    """

    simclr: SimclrConfig = field(default_factory=lambda: SIMCLR["two-cores"])
    rounds: int = 4
    stages: int = 3
    epochs: int = 3
    first: int = 8
    quantile: float = 0.9
    share: float = 0.2
    confidence: float = 0.0
    doubt: float = 0.5
    strengths: tuple[float, ...] = (0.0,)
    loss: Literal["cross-entropy", "softmax-weighted"] = "cross-entropy"
    restart: bool = False
    last: int = 12
    finish: Literal["tune", "divide-mix"] = "tune"
    tune: TuneConfig = field(default_factory=lambda: TuneConfig(targets="all", lr=0.1))

    @property
    def trained(self) -> int:
        """Epochs of all stages and of the last training."""
        return self.stages * (self.first + (self.rounds - 1) * self.epochs) + self.last

    def __post_init__(self) -> None:
        for name in ("rounds", "stages", "epochs", "first", "last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"refine.{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("quantile", "share", "confidence", "doubt"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"refine.{name} must lie in [0, 1], not {getattr(self, name)}")
        if not self.strengths or not all(0 <= s <= 1 for s in self.strengths):
            raise ConfigError(f"refine.strengths must lie in [0, 1], not {self.strengths}")


# two-cores: minutes on a CPU; so few epochs bear no stronger views. gpu: as long as papers train.
SETTINGS: Mapping[str, RefineConfig] = {
    "two-cores": RefineConfig(),
    "gpu": RefineConfig(
        simclr=SIMCLR["published"],
        stages=5,
        epochs=6,
        first=6,
        strengths=(0.0, 0.2, 0.4, 0.6, 0.4),
        restart=True,
        last=200,
    ),
}


@dataclass(frozen=True)
class LabelUpdate:
    """What a round says of the labels.

    labels: ``int64[n]``, the new ones. weights: ``float64[n]``, how much each counts from now on.
    clean, relabelled: ``bool[n]``; what is neither is in doubt.
    """

    labels: np.ndarray
    weights: np.ndarray
    clean: np.ndarray
    relabelled: np.ndarray


class Round(NamedTuple):
    """A round: the network that it trained on the labels before, and what that said of them."""

    model: nn.Module
    judgement: LabelUpdate


@dataclass(frozen=True)
class Refined:
    """model: trained on the last labels. encoder: the body that all rounds began with.

    seconds: wall clock by stage: ``"simclr"``, ``"rounds/1"`` …, ``"5-tune"``.
    """

    model: nn.Module
    encoder: nn.Module
    rounds: tuple[Round, ...]
    seconds: dict[str, float]

    @property
    def labels(self) -> np.ndarray:
        """``int64[n]``: the labels in the end."""
        return self.rounds[-1].judgement.labels


def judge(
    probs: np.ndarray,
    labels: np.ndarray,
    *,
    quantile: float = 0.9,
    share: float = 0.2,
    confidence: float = 0.0,
    doubt: float = 0.5,
) -> LabelUpdate:
    """Which labels stand, which are replaced, and which are in doubt.

    Consensus: all stages predict the same class. With it, a label that is predicted is clean if its
    loss ``−log p̄_y`` is within the lower ``quantile`` of such losses, p̄ the mean over stages. Of
    the samples whose consensus is another class than the label, the ``share`` with the largest
    ``max p̄``, ``confidence`` at least, get that class. Clean and replaced labels count 1, all
    others stay and count ``doubt``. A class that would have nothing left keeps its labels.

    A share, because a network that learned from labels of which 40 % are wrong is seldom surer than
    60 %: a level fixed beforehand replaces nothing at first and too much later.

    probs: ``float[s, n, c]``, rows sum to one, stage by stage. labels: ``int64[n]``, the current
    ones. Ties go to the lower row. DataError if the shapes do not match.
    """
    if probs.ndim != 3 or probs.shape[1] != len(labels) or not len(probs):
        raise DataError(f"probabilities of shape {probs.shape} for {len(labels)} labels")
    predicted, mean = probs.argmax(axis=2), probs.mean(axis=0)
    said, sure = predicted[-1], mean.max(axis=1)
    consensus = (predicted == said).all(axis=0)
    loss = -np.log(np.maximum(mean[np.arange(len(labels)), labels], 1e-12))
    clean = consensus & (said == labels)
    if clean.any():
        clean &= loss <= np.quantile(loss[clean], quantile)
    others = np.flatnonzero(consensus & (said != labels))
    most = others[np.argsort(-sure[others], kind="stable")][: round(share * len(others))]
    relabelled = np.zeros(len(labels), dtype=bool)
    relabelled[most[sure[most] >= confidence]] = True
    weights = np.where(clean | relabelled, 1.0, doubt)
    new = np.where(relabelled, said, labels)
    left = np.isin(labels, np.setdiff1d(labels, new[weights > 0]))
    return LabelUpdate(
        labels=np.where(left, labels, new),
        weights=np.where(left, 1.0, weights),
        clean=clean,
        relabelled=relabelled & ~left,
    )


def refine(
    model: nn.Module,
    samples: Samples,
    config: RefineConfig | None = None,
    *,
    encoder: nn.Module | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Refined:
    """Pre-train a classifier's body without labels, refine the labels in rounds, train on these.

    model: any classifier of images with a linear head; its weights are where the pre-training
    starts. encoder: one that is pre-trained already, instead. out: a run folder of its own; an
    interrupted refinement goes on from it. fresh: discard what is in it. One process.

    Cost: two plain epochs for each of the pre-training, the epochs of all stages and the last
    training, and a pass after each stage.
    """
    config = config or RefineConfig()
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
        work = _Work(run, encoder, samples, config, seed, progress)
        rounds: list[Round] = []
        for number in range(config.rounds):
            rounds.append(work.round(number, rounds[-1] if rounds else None))
        last = work.last(rounds[-1])
        return Refined(last, encoder, tuple(rounds), seconds | run.seconds)


def ssl_refine(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float,
    progress: Progress,
    what: str,
) -> nn.Module:
    """`refine` as the trainer of a recipe: from a checkpoint, whose labels are not believed.

    config: of every training in it; its epochs are shared out as `RefineConfig` has them, 63.
    """
    usual, simclr = RefineConfig(), fitting(SIMCLR["two-cores"], model, samples)
    part = config.epochs / usual.trained
    epochs, first, last = (max(1, round(part * n)) for n in (usual.epochs, usual.first, usual.last))
    chosen = replace(usual, simclr=simclr, tune=config, epochs=epochs, first=first, last=last)
    return refine(model, samples, chosen, seed=seed, progress=progress).model


@dataclass(frozen=True)
class _Work:
    """What the rounds share."""

    run: Run
    encoder: nn.Module
    samples: Samples
    config: RefineConfig
    seed: int
    progress: Progress

    def round(self, number: int, before: Round | None) -> Round:
        """Train in stages on the labels before, and judge these."""
        config, name = self.config, f"rounds/{number + 1}"
        if before is None:
            labels, weights = np.array(self.samples.labels), np.ones(len(self.samples))
        else:
            labels, weights = before.judgement.labels, before.judgement.weights
        start = self.encoder if config.restart or before is None else before.model

        def compute() -> Artefact:
            model = start
            if start is self.encoder:
                model = with_fresh_head(start, self.samples, derive(self.seed, name))
            weighted, probs = config.loss == "softmax-weighted", []
            if weighted and before is not None:
                probs.append(_said(before.model, self.samples))
            viewed = distorted(self.samples, _at(config.strengths, number))
            for stage in range(config.stages):
                w = weights
                if weighted and probs:
                    w = weights * probs[-1][np.arange(len(labels)), labels]
                model = tune(
                    model,
                    viewed,
                    _targets(labels, w),
                    replace(config.tune, epochs=config.epochs if before else config.first),
                    seed=derive(self.seed, name, stage),
                    progress=self.progress,
                    what=name,
                )
                probs.append(_said(model, self.samples))
            found = judge(
                np.stack(probs[-config.stages :]),
                labels,
                quantile=config.quantile,
                share=config.share,
                confidence=config.confidence,
                doubt=config.doubt,
            )
            arrays = {k: torch.from_numpy(v) for k, v in vars(found).items()}
            return Artefact(tensors={**_prefixed(model), **arrays})

        artefact = self.run.stage(name, {"reads": dict(self.run.keys)}, compute)
        parts = ("labels", "weights", "clean", "relabelled")
        found = LabelUpdate(**{k: artefact.tensors[k].numpy() for k in parts})
        return Round(_with_weights(self.encoder, artefact, name), found)

    def last(self, before: Round) -> nn.Module:
        """Train on the final labels."""

        def compute() -> Artefact:
            given = self.samples, before, self.encoder, self.config
            model = finish(*given, seed=self.seed, progress=self.progress)
            return Artefact(tensors=_prefixed(model))

        artefact = self.run.stage("5-tune", {"reads": dict(self.run.keys)}, compute)
        return _with_weights(self.encoder, artefact, "5-tune")


def finish(
    samples: Samples,
    before: Round,
    encoder: nn.Module,
    config: RefineConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """A network trained on the labels of the last round, for ``config.last`` epochs.

    From the round's own network, or from the encoder and a fresh head (``restart``). DivideMix
    takes all samples with their labels as they are now, and finds its own doubts.
    """
    what, found = "last", before.judgement
    at, how = derive(seed, what), replace(config.tune, epochs=config.last)
    model = with_fresh_head(encoder, samples, at) if config.restart else before.model
    viewed = distorted(samples, _at(config.strengths, config.rounds))
    if config.finish == "divide-mix":
        refined = replace(viewed, labels=found.labels)
        train = trainers.get("divide-mix")
        return train(model, refined, how, seed=at, rate=0.0, progress=progress, what=what)
    targets = _targets(found.labels, found.weights)
    return tune(model, viewed, targets, how, seed=at, progress=progress, what=what)


@dataclass(frozen=True)
class _Then:
    """One view of another."""

    first: View
    second: View

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.second(self.first(x, generator), generator)


def distorted(samples: Samples, strength: float) -> Samples:
    """The samples with a view that distorts their own further: crops, colours; 0 leaves theirs."""
    if not strength:
        return samples
    view: View = SimCLRAugmentation(
        strength=strength,
        area=(1 - 0.8 * strength, 1.0),
        grey=0.2 * strength,
        prepare=samples.prepare,
    )
    return replace(samples, view=_Then(samples.view, view) if samples.view else view)


def with_fresh_head(model: nn.Module, samples: Samples, seed: int) -> nn.Module:
    """A copy of a classifier whose last linear layer is drawn anew."""
    fix = "use a model with a linear head"
    head = find_head(model, samples.example(), where="refine", fix=fix)
    fresh = copy.deepcopy(model)
    reset: Callable[[], None] = module_named(fresh, head).reset_parameters  # type: ignore[assignment]
    with temp_seed(seed, "head"):
        reset()
    return fresh


def _at(strengths: tuple[float, ...], number: int) -> float:
    return strengths[min(number, len(strengths) - 1)]


def _targets(labels: np.ndarray, weights: np.ndarray) -> Targets:
    at = np.flatnonzero(weights > 0)
    return Targets(at, labels[at], weights[at])


def _said(model: nn.Module, samples: Samples) -> np.ndarray:
    """Class probabilities on plain inputs, ``float64[n, c]``."""
    logits = collect(model, samples, what="refine").logits
    return np.asarray(softmax(logits.astype(np.float64), axis=1))


def _prefixed(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{k}": v for k, v in model.state_dict().items()}


def _with_weights(model: nn.Module, artefact: Artefact, where: str) -> nn.Module:
    tensors = artefact.tensors.items()
    found = copy.deepcopy(model)
    weights = {k.removeprefix("model."): v for k, v in tensors if k.startswith("model.")}
    fit_weights(found, weights, where=where)
    return found.eval()
