"""Published ways to train on wrong labels from scratch, small: what a repair is compared with.

Each is a registered function of an untrained model, the samples and how to train (`TuneConfig`;
its ``data`` is not asked, all samples are used). One process; an interrupted training begins anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from expunge._core.distributed import single_process
from expunge._core.progress import Progress
from expunge._core.registry import NoMetadata, Registry
from expunge._core.rng import derive, generator, temp_seed, torch_generator
from expunge.data import Samples, require_tensor
from expunge.models.inspection import eval_mode, logits_of, reinitialise, to_channels_last
from expunge.training.optimisation import (
    TuneConfig,
    autocast,
    batch_boundaries,
    build_optimizer,
    choose_batch_size,
    set_learning_rate,
    with_learning_rate,
)

trainers: Registry[Callable[..., nn.Module], NoMetadata] = Registry("trainer", NoMetadata)

# ELR for CIFAR-10.
LAMBDA, BETA = 3.0, 0.7
# Parts of the training: when co-teaching has reached the share that it keeps (10 of 200 epochs),
# and DivideMix' warm-up and ramp (10 and 16 of 300). Both begin with the full learning rate; where
# ours rises first, nothing is dropped before: networks that know nothing keep what is easy.
KEPT_WITHIN, WARM_UP, RAMP = 10 / 200, 10 / 300, 16 / 300
CLEAN, SHARPEN, MIXUP, UNLABELLED = 0.5, 0.5, 4.0, 25.0


@trainers.register("elr")
def elr(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float,
    progress: Progress,
    what: str,
) -> nn.Module:
    """Early-learning regularisation (arXiv 2007.00151).

    ``CE(p, y) + λ log(1 − ⟨p, t⟩)``, with the target t of each sample a running mean of what the
    network said of it: ``t ← β t + (1 − β) p``. λ = 3, β = 0.7.
    """
    training = _Training(model, samples, config, seed, progress, what)
    learner = training.learner(0)
    target = torch.zeros(len(samples), len(samples.classes), device=training.device)
    for epoch in range(config.epochs):
        for step in training.batches(epoch):
            logits = learner.logits(step.view(0))
            p = logits.softmax(dim=1).clamp(1e-4, 1 - 1e-4)
            said = p.detach() / p.detach().sum(dim=1, keepdim=True)
            target[step.rows] = BETA * target[step.rows] + (1 - BETA) * said
            lean = (p * target[step.rows]).sum(dim=1)
            loss = nn.functional.cross_entropy(logits, step.y) + LAMBDA * (1 - lean).log().mean()
            learner.step(loss)
    return learner.finished()


@trainers.register("co-teaching")
def co_teaching(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float,
    progress: Progress,
    what: str,
) -> nn.Module:
    """Co-teaching (arXiv 1804.06872): two networks choose each other's small-loss samples.

    Of every batch the share ``1 − rate · min(1, t / t_k)`` is kept in the end; rate: that of the
    partition, where the paper knows it. Twice the cost; the first network is returned.
    """
    training = _Training(model, samples, config, seed, progress, what)
    learners, risen = (training.learner(0), training.learner(1)), _risen(config)
    for epoch in range(config.epochs):
        for step in training.batches(epoch):
            x = step.view(0)
            losses = [
                nn.functional.cross_entropy(net.logits(x), step.y, reduction="none")
                for net in learners
            ]
            share = 1 - rate * float(np.clip((step.done - risen) / KEPT_WITHIN, 0, 1))
            count = max(1, round(share * len(step.y)))
            small = [loss.detach().argsort()[:count] for loss in losses]
            for net, loss, chosen in zip(learners, losses, reversed(small), strict=True):
                net.step(loss[chosen].mean())
    return learners[0].finished()


@trainers.register("divide-mix")
def divide_mix(
    model: nn.Module,
    samples: Samples,
    config: TuneConfig,
    *,
    seed: int,
    rate: float,
    progress: Progress,
    what: str,
) -> nn.Module:
    """DivideMix (arXiv 2002.07394): each network's losses divide the data for the other.

    After a warm-up, a mixture of two Gaussians on the losses of one network gives every sample's
    probability w to be clean. The other learns from both parts by MixMatch: labels refined by
    ``w y + (1 − w) p̄``, guesses p̄ of both networks for the rest, two views each, sharpened
    (T = 0.5), mixed up (Beta(4, 4)); ``CE + λ_u MSE + KL(mean p, uniform)``, λ_u ramped up to 25.
    Some eight times the cost of plain training an epoch; the networks' mean votes are not used:
    the first network is returned.
    """
    training = _Training(model, samples, config, seed, progress, what)
    learners = training.learner(0), training.learner(1)
    start = max(WARM_UP, _risen(config))
    warm = max(1, round(start * config.epochs))
    for epoch in range(config.epochs):
        clean = None if epoch < warm else [_clean(net, training) for net in learners]
        for step in training.batches(epoch):
            if clean is None:
                for net in learners:
                    net.step(nn.functional.cross_entropy(net.logits(step.view(0)), step.y))
                continue
            ramp = UNLABELLED * float(np.clip((step.done - start) / RAMP, 0, 1))
            for net, other, w in zip(learners, reversed(learners), reversed(clean), strict=True):
                net.step(_mixmatch(net, other, step, w[step.rows.cpu()], ramp))
    return learners[0].finished()


def _risen(config: TuneConfig) -> float:
    """When the learning rate has risen, as a share of the training."""
    return config.warmup if config.schedule == "onecycle" else 0.0


def _mixmatch(net: _Learner, other: _Learner, step: _Step, w: Tensor, ramp: float) -> Tensor:
    """The loss of a batch, of which the samples with ``w > CLEAN`` count as labelled."""
    w = w.to(step.y.device)[:, None]
    views = [step.view(k) for k in range(2)]
    with torch.no_grad():
        own = torch.stack([net.logits(x).softmax(dim=1) for x in views]).mean(dim=0)
        both = (own + torch.stack([other.logits(x).softmax(dim=1) for x in views]).mean(dim=0)) / 2
        one_hot = nn.functional.one_hot(step.y, own.shape[1]).float()
        target = torch.where(w > CLEAN, w * one_hot + (1 - w) * own, both)
        target = target ** (1 / SHARPEN)
        target /= target.sum(dim=1, keepdim=True)
    x, t = torch.cat(views), torch.cat([target, target])
    labelled = torch.cat([w > CLEAN, w > CLEAN])[:, 0]
    share = float(step.random.beta(MIXUP, MIXUP))
    share = max(share, 1 - share)
    partner = torch.from_numpy(step.random.permutation(len(x))).to(x.device)
    logits = net.logits(share * x + (1 - share) * x[partner])
    mixed = share * t + (1 - share) * t[partner]
    cross = -(mixed * logits.log_softmax(dim=1)).sum(dim=1)
    apart = (logits.softmax(dim=1) - mixed).square().mean(dim=1)
    mean = logits.softmax(dim=1).mean(dim=0)
    even = (torch.full_like(mean, 1 / len(mean)) * (1 / len(mean) / mean).log()).sum()
    return _mean(cross, labelled) + ramp * _mean(apart, ~labelled) + even


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _clean(net: _Learner, training: _Training) -> Tensor:
    """Probability that each label is right: the mixture's component with the smaller mean loss."""
    losses = []
    samples = training.samples
    with eval_mode(net.model), torch.no_grad():
        for rows in samples.batches(512):
            y = torch.from_numpy(samples.labels[rows]).to(training.device)
            logits = net.logits(training.inputs(rows))
            losses.append(nn.functional.cross_entropy(logits, y, reduction="none").cpu())
    loss = torch.cat(losses).double().numpy()
    loss = (loss - loss.min()) / max(float(np.ptp(loss)), 1e-12)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    share = mixture.fit(loss[:, None]).predict_proba(loss[:, None])
    return torch.from_numpy(share[:, mixture.means_[:, 0].argmin()]).float()


class _Step:
    """A batch: its rows, labels, the share of the training that is done, and views on demand."""

    def __init__(self, training: _Training, rows: np.ndarray, number: int) -> None:
        samples = training.samples
        self.rows = torch.from_numpy(rows).to(training.device)
        self.y = torch.from_numpy(samples.labels[rows]).to(training.device)
        self.done = number / training.total
        self.random = generator(training.seed, training.what, number)
        self._number, self._training = number, training
        self._x = training.inputs(rows)

    def view(self, number: int) -> Tensor:
        """A random view of the inputs; the same number gives the same one."""
        training = self._training
        if training.samples.view is None or not training.config.augment:
            return self._x
        draw = torch_generator(training.seed, training.what, self._number, number)
        return training.samples.view(self._x, draw)


class _Learner:
    """A network that learns."""

    def __init__(self, model: nn.Module, training: _Training) -> None:
        self.model = model.to(training.device).train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer, self._training = build_optimizer(model, training.config), training

    def logits(self, x: Tensor) -> Tensor:
        """What the network says of some inputs, in float32."""
        with autocast(self._training.config.precision, x.device):
            return logits_of(self.model, to_channels_last(x)).float()

    def step(self, loss: Tensor) -> None:
        """Move against the slope of the loss, at the rate of the schedule."""
        set_learning_rate(self._optimizer, self._training.config, self._training.done)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def finished(self) -> nn.Module:
        """The trained network."""
        self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return self.model.eval()


class _Training:
    """What the learners share: data, schedule, randomness."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        config: TuneConfig,
        seed: int,
        progress: Progress,
        what: str,
    ) -> None:
        self.what = what
        self.device = single_process(what, fix="leave the recipe out, or start one process").device
        self.samples, self.seed = samples.to_device(self.device), seed
        self.config = with_learning_rate(config, len(samples))
        self._model, self._progress = model, progress
        self._cuts = batch_boundaries(len(samples), choose_batch_size(config, len(samples)), 2)
        self.total = (len(self._cuts) + 1) * config.epochs
        self.done = 0.0

    def learner(self, number: int) -> _Learner:
        """A copy of the model; the second one begins with weights of its own."""
        if number:
            return _Learner(reinitialise(self._model, derive(self.seed, "learner", number)), self)
        return _Learner(copy.deepcopy(self._model), self)

    def inputs(self, rows: np.ndarray) -> Tensor:
        """Prepared inputs."""
        return require_tensor(self.samples.batch(rows, device=self.device), self.what)

    def batches(self, epoch: int) -> Iterator[_Step]:
        """All samples in random order."""
        order = generator(self.seed, "order", epoch).permutation(len(self.samples))
        first = epoch * (len(self._cuts) + 1)
        with temp_seed(self.seed, self.what, epoch):
            for number, rows in enumerate(np.split(order, self._cuts), start=first):
                self.done = (number + 0.5) / self.total
                yield _Step(self, rows, number)
                self._progress(self.what, number + 1, self.total)
