"""The parts of DivideMix: the division of the samples by losses, and the MixMatch loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from expunge._core.arrays import Floats, Ints
from expunge._core.distributed import broadcast_decision, gather_rows, shard, this_process
from expunge.data import Samples, require_tensor
from expunge.models.calls import eval_mode, logits_of, to_channels_last
from expunge.training.optimisation import TuneConfig, autocast
from expunge.training.steps import Step

# Samples above this probability count as labelled; temperature of sharpened predictions; parameter
# of the Beta distribution of MixUp.
CLEAN_THRESHOLD, TEMPERATURE, MIXUP = 0.5, 0.5, 4.0
# Samples of a forward pass without gradients.
_BATCH_SIZE = 512


@dataclass(frozen=True)
class SampleBatches:
    """Samples as the steps of a training read them."""

    samples: Samples
    is_augmented: bool
    what: str

    @classmethod
    def of(cls, samples: Samples, config: TuneConfig, what: str) -> SampleBatches:
        """Move the samples to the device of this process if they fit."""
        return cls(samples.to_device(this_process().device), config.augment, what)

    def inputs(self, step: Step) -> Tensor:
        """Return the inputs of this process, ``float32[b, …]``."""
        return self.read(step.rows, step.device)

    def read(self, rows: Ints, device: torch.device) -> Tensor:
        """Return the inputs at these rows; `DataError` if they are not tensors."""
        return require_tensor(self.samples.batch(rows, device=device), self.what)

    def view(self, step: Step, x: Tensor, number: int = 0) -> Tensor:
        """Return a random view of inputs, or the inputs without augmentation."""
        if not self.is_augmented:
            return x
        return require_tensor(step.augment(self.samples, x, number), self.what)

    def labels(self, step: Step) -> Tensor:
        """Return the labels of the whole batch, ``int64[b]``."""
        return step.to_device(self.samples.labels[step.batch])


def clean_probability(network: nn.Module, batches: SampleBatches, config: TuneConfig) -> Tensor:
    """Estimate the probability that each label is right, by a mixture of two Gaussians on losses.

    Parameters
    ----------
    network
        The network whose losses divide the samples.
    batches
        The samples.
    config
        Its ``precision`` is used.

    Returns
    -------
    Tensor
        ``float32[n]`` on the CPU: the probability of the component with the smaller mean loss.
    """
    samples, accelerator = batches.samples, this_process()
    positions, losses = [], []
    with eval_mode(network), torch.no_grad():
        for rows in samples.batches(
            _BATCH_SIZE, positions=shard(np.arange(len(samples)), accelerator)
        ):
            x = to_channels_last(batches.read(rows, accelerator.device))
            y = torch.as_tensor(samples.labels[rows]).to(accelerator.device)
            with autocast(config.precision, accelerator.device):
                logits = logits_of(network, x).float()
            losses.append(nn.functional.cross_entropy(logits, y, reduction="none").cpu())
            positions.append(rows)
    own = {"loss": torch.cat(losses).double().numpy()}
    loss = gather_rows(own, np.concatenate(positions), len(samples))["loss"]
    return torch.from_numpy(broadcast_decision(accelerator, lambda: divide_losses(loss))).float()


def divide_losses(loss: Floats) -> Floats:
    """Return the probability of the component with the smaller mean, for losses ``float64[n]``."""
    from sklearn.mixture import GaussianMixture

    loss = (loss - loss.min()) / max(float(np.ptp(loss)), 1e-12)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    probabilities = mixture.fit(loss[:, None]).predict_proba(loss[:, None])
    smaller: Floats = probabilities[:, mixture.means_[:, 0].argmin()]
    return smaller


def mixmatch_loss(
    step: Step,
    network: int,
    views: list[Tensor],
    *,
    labels: Ints,
    clean: Tensor,
    unlabelled_weight: float,
    random: np.random.Generator,
) -> Tensor:
    """Return ``CE + λ_u MSE + KL(uniform ‖ mean p)`` of a batch, mixed up.

    The target of a labelled sample is ``w y + (1 − w) p̄``, with p̄ the mean prediction of this
    network over the views; that of an unlabelled one is the mean over both networks. Targets are
    sharpened (T = 0.5), and all inputs and targets are mixed in pairs (Beta(4, 4)). CE is the mean
    over labelled, MSE over unlabelled samples.

    Parameters
    ----------
    step
        The step of two networks.
    network
        Which of the two learns.
    views
        Two views ``float32[b, …]`` of the inputs of this process.
    labels
        ``int64[n]``, the labels of all samples.
    clean
        ``float32[n]``, w: the probability that each label is right.
    unlabelled_weight
        λ_u.
    random
        Draws the mixing.

    Returns
    -------
    Tensor
        A scalar.
    """
    x = torch.cat(views)
    target = _sharpened_targets(step, network, views, labels, clean)
    target = torch.cat([target, target])
    share = float(random.beta(MIXUP, MIXUP))
    share = max(share, 1 - share)
    partner = torch.from_numpy(random.permutation(len(x))).to(x.device)
    logits = step.logits(network, share * x + (1 - share) * x[partner])
    mixed = share * target + (1 - share) * target[partner]
    logits, mixed = (_gather_views(step, values) for values in (logits, mixed))
    is_labelled = (clean[step.batch] > CLEAN_THRESHOLD).repeat(2).to(x.device)
    cross_entropy = -(mixed * logits.log_softmax(dim=1)).sum(dim=1)
    squared_error = (logits.softmax(dim=1) - mixed).square().mean(dim=1)
    mean = logits.softmax(dim=1).mean(dim=0)
    divergence = (torch.full_like(mean, 1 / len(mean)) * (1 / len(mean) / mean).log()).sum()
    labelled, unlabelled = (
        _mean_where(cross_entropy, is_labelled),
        _mean_where(squared_error, ~is_labelled),
    )
    return labelled + unlabelled_weight * unlabelled + divergence


@torch.no_grad()
def _sharpened_targets(
    step: Step, network: int, views: list[Tensor], labels: Ints, clean: Tensor
) -> Tensor:
    """Return the targets of this process's samples, ``float32[b, c]``; see `mixmatch_loss`."""

    def mean_prediction(k: int) -> Tensor:
        return torch.stack([step.logits(k, x).softmax(dim=1) for x in views]).mean(dim=0)

    w = clean[step.rows].to(step.device)[:, None]
    own = mean_prediction(network)
    both = (own + mean_prediction(1 - network)) / 2
    one_hot = nn.functional.one_hot(step.to_device(labels[step.rows]), own.shape[1]).float()
    target = torch.where(w > CLEAN_THRESHOLD, w * one_hot + (1 - w) * own, both)
    target = target ** (1 / TEMPERATURE)
    return target / target.sum(dim=1, keepdim=True)


def _gather_views(step: Step, values: Tensor) -> Tensor:
    """Join rows ``[2 b, c]`` of two views over processes."""
    return step.gather(values.view(2, -1, values.shape[1]), dim=1).flatten(0, 1)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
