"""How well a network stands attacks on its pixels, and whether the answer can be trusted.

All attacks are in the maximum norm on inputs in [0, 1]: what a user's images are before they are
standardised. A sample counts as robust if it is classified rightly and no try changes that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge._core.distributed import this_process
from expunge._core.isolation import isolated
from expunge._core.progress import Progress, silent
from expunge._core.rng import legacy_numpy, torch_generator
from expunge.data import Batch, DataLike, Preparation, Samples, as_samples
from expunge.errors import ConfigError, DataError, check_range, format_ids
from expunge.export.onnx import PreparedModel
from expunge.models.calls import eval_mode, logits_of, on_device
from expunge.training.loop import Objective

# The usual budgets for 8-bit images, and one that lets an image become any other.
EPSILONS = (2 / 255, 8 / 255)
UNBOUNDED = 1.0
# By so much may attacks that should be weaker do better on the same samples.
TOLERANCE = 0.01
AttackLoss = Literal["cross-entropy", "margin"]
_WHERE = "attack"


class FromPixels(nn.Module):
    """A model behind the standardisation ``(x − mean) / std`` of its channels; x in [0, 1].

    Raises ConfigError unless mean and std have one number a channel, those of std above 0.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ConfigError(
                f"mean {tuple(mean)} and std {tuple(std)} must be a number a channel, std above 0",
                where="FromPixels",
            )
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    """One step along the sign of the gradient (arXiv 1412.6572): ``x + ε sign ∂CE/∂x`` in [0, 1].

    model: of pixels. x: ``float[b, …]`` in [0, 1]. y: ``int64[b]``. Returns inputs like x. Cost: a
    forward and a backward pass.
    """
    return _ascend(model, x, y, x, eps=eps, step=eps, steps=1, loss="cross-entropy")


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 20,
    step: float | None = None,
    restarts: int = 1,
    loss: AttackLoss = "cross-entropy",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent from random starts (arXiv 1706.06083): the first success, or x.

    step: of each iteration, ``ε / 4`` by default; as much as reaches from end to end of the box in
    few steps. loss ``"margin"``: the largest wrong logit less the right one, whose gradient does
    not vanish where the network is sure. generator: on the CPU; of the starts.

    Returns inputs like x within ``ε`` of it: of each sample the first try that is misclassified,
    else the last. Cost: ``restarts × steps`` forward and backward passes, fewer for
    what has fallen. Raises ConfigError for fewer steps or restarts than one.
    """
    counts = {"steps": (steps, "[1, inf)"), "restarts": (restarts, "[1, inf)")}
    check_range(ConfigError, counts, where=_WHERE)
    step = max(eps / 4, 2 * eps / steps) if step is None else step
    found = x.clone()
    left = torch.arange(len(x), device=x.device)
    for _ in range(restarts):
        start = (2 * torch.rand(x[left].shape, generator=generator) - 1) * eps
        begin = (x[left] + start.to(x)).clamp(0, 1)
        found[left] = _ascend(
            model, x[left], y[left], begin, eps=eps, step=step, steps=steps, loss=loss
        )
        left = left[_right(model, found[left], y[left])]
        if not len(left):
            break
    return found


def _ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    begin: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    loss: AttackLoss,
) -> Tensor:
    """Steps along the sign of the gradient, kept within the box and in [0, 1]."""
    check_range(ConfigError, {"eps": (eps, "[0, inf)")}, where=_WHERE)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    moved = begin.detach()
    with eval_mode(model), torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_()
            value = _LOSSES[loss](logits_of(model, moved).float(), y).sum()
            (gradient,) = torch.autograd.grad(value, moved)
            moved = torch.clamp(moved.detach() + step * gradient.sign(), low, high)
    return moved.detach()


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    right = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - right


_LOSSES: Mapping[AttackLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
    "margin": _margin,
}


def square(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, queries: int = 100, seed: int = 0
) -> Tensor:
    """The square attack (arXiv 1912.00049): random search that sees logits and no gradient.

    Of the package adversarial-robustness-toolbox, which expunge-bench installs. It
    places one square for the whole batch in every step. x: images ``float[b, C, H, W]``. Cost:
    three forward passes a query of what is still classified rightly; images 2 pixels wide or more.
    """
    if find_spec("art") is None:
        raise ConfigError(
            "the package 'adversarial-robustness-toolbox' is not installed",
            fix="pip install adversarial-robustness-toolbox",
        )
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return logits_of(model, torch.from_numpy(batch).to(x)).float().cpu().numpy()

    with eval_mode(model), legacy_numpy(seed, "square attack"):
        shape, classes = tuple(x.shape[1:]), logits_of(model, x[:1]).shape[1]
        seen = BlackBoxClassifierNeuralNetwork(
            predict, shape, classes, channels_first=True, clip_values=(0.0, 1.0)
        )
        attack = SquareAttack(
            seen, norm=np.inf, eps=eps, max_iter=queries, batch_size=len(x), verbose=False
        )
        found = attack.generate(x.cpu().numpy().copy(), F.one_hot(y, classes).cpu().numpy())
    return torch.from_numpy(found).to(x)


def adversarial(*, eps: float = 8 / 255, steps: int = 5) -> Objective:
    """What `tune` minimises in adversarial training (arXiv 1706.06083): CE after PGD.

    The model takes pixels (see `FromPixels`), the samples are not standardised. Steps of
    ``2.5 ε / steps``, one random start, found in evaluation mode. Cost: ``steps + 1`` forward and
    backward passes a batch. Raises ConfigError for a budget below 0 and fewer steps than one,
    DataError for inputs outside [0, 1].
    """
    check_range(ConfigError, {"eps": (eps, "[0, inf)"), "steps": (steps, "[1, inf)")}, where=_WHERE)

    def objective(model: nn.Module, x: Batch, y: Tensor) -> Tensor:
        pixels = _as_pixels(x, "adversarial training")
        bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        start = (pixels + (2 * torch.rand_like(pixels) - 1) * eps).clamp(0, 1)
        attacked = _ascend(
            bare,
            pixels,
            y,
            start,
            eps=eps,
            step=2.5 * eps / steps,
            steps=steps,
            loss="cross-entropy",
        )
        return F.cross_entropy(logits_of(model, attacked).float(), y, reduction="none")

    return objective


def _as_pixels(x: Batch, where: str) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DataError("needs inputs that are one tensor of floats", where=where)
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise DataError(
            f"needs inputs in [0, 1], these reach from {low:.3g} to {high:.3g}",
            where=where,
            fix="no mean and std in the data; put the model behind FromPixels(model, mean, std)",
        )
    return x


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``bool[b]``: what is classified rightly."""
    with eval_mode(model), torch.no_grad():
        return logits_of(model, x).argmax(1) == y


@dataclass(frozen=True)
class Check:
    """Something that would be otherwise if gradients were masked. name, whether it holds, why."""

    name: str
    holds: bool
    evidence: str


@dataclass(frozen=True)
class Robustness:
    """Accuracy (fractions) by attack and budget on the same n samples, and checks of it.

    clean: without an attack. accuracy: ``{attack: {eps: accuracy}}``; attacks are fgsm, pgd, margin
    (PGD on the margin of the logits), square and, with a surrogate, transfer. checks: see `checks`.
    """

    n: int
    clean: float
    accuracy: Mapping[str, Mapping[float, float]]
    checks: tuple[Check, ...]

    @property
    def masked(self) -> tuple[str, ...]:
        """Names of the checks that do not hold."""
        return tuple(check.name for check in self.checks if not check.holds)

    def markdown(self) -> str:
        """A table of accuracies in percent, and the checks below."""
        budgets = sorted({eps for found in self.accuracy.values() for eps in found})
        head = ["attack", *(f"{255 * eps:.3g}/255" for eps in budgets)]
        lines = [["none", *(f"{100 * self.clean:.1f}" for _ in budgets)]]
        for attack, found in self.accuracy.items():
            cells = (f"{100 * found[eps]:.1f}" if eps in found else "–" for eps in budgets)
            lines.append([attack, *cells])
        rows = [head, ["---"] * len(head), *lines]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        notes = (f"- {'✓' if c.holds else '⚑'} {c.name}: {c.evidence}" for c in self.checks)
        return "\n".join([table, "", *notes, ""])


@isolated
def robustness(
    model: nn.Module,
    samples: DataLike,
    *,
    epsilons: Sequence[float] = EPSILONS,
    steps: int = 20,
    restarts: int = 1,
    queries: int = 100,
    surrogate: nn.Module | None = None,
    batch_size: int = 500,
    seed: int = 0,
    progress: Progress = silent,
) -> Robustness:
    """Attack a model on labelled images in raw pixel space; the model is left as it was.

    samples: whose prepared inputs the model takes; attacked is what they are before, in [0, 1].
    epsilons: budgets, as parts of the range of pixels. steps, restarts: of PGD. queries: of the
    black-box attack, which needs the package adversarial-robustness-toolbox; 0 leaves it out.
    surrogate: a model whose adversarial examples are tried too. Cost a sample and budget: about
    ``2 · restarts · steps`` forward and backward passes and ``3 · queries`` forward passes. Raises
    DataError for inputs outside [0, 1], and for labels that the model has no output for.
    """
    samples = as_samples(samples)
    if not epsilons or any(not 0 < eps <= 1 for eps in epsilons):
        raise ConfigError(
            f"budgets must lie in (0, 1], not {format_ids(epsilons)}", where="robustness"
        )
    whole = PreparedModel(model, samples.prepare)
    other = None if surrogate is None else PreparedModel(surrogate, samples.prepare)
    sums: dict[tuple[str, float], float] = {}
    cuts, device = list(samples.batches(batch_size)), this_process().device
    with ExitStack() as places:
        for attacked in (whole, other):
            if attacked is not None:
                places.enter_context(on_device(attacked, device))
        for number, rows in enumerate(cuts):
            stored = samples.inputs.batch(rows)
            x = Preparation()(stored.to(device)) if isinstance(stored, Tensor) else stored
            x, y = _as_pixels(x, samples.name), torch.from_numpy(samples.labels[rows]).to(device)
            if number == 0:
                _check_attacks(whole, samples, x[:1], queries)
            tries = _Tries(whole, other, x, y, steps, restarts, queries, seed + number)
            for key, count in tries.counts(sorted(epsilons)).items():
                sums[key] = sums.get(key, 0.0) + count
            progress("robustness", number + 1, len(cuts))
    shares = {key: value / len(samples) for key, value in sums.items()}
    attacks = dict.fromkeys(name for name, _ in shares if name not in ("none", "loss"))
    accuracy = {
        name: {eps: v for (a, eps), v in shares.items() if a == name and eps != UNBOUNDED}
        for name in attacks
    }
    losses = {eps: v for (a, eps), v in shares.items() if a == "loss"}
    found = checks(accuracy, shares[("none", 0.0)], losses, shares[("pgd", UNBOUNDED)])
    return Robustness(len(samples), shares[("none", 0.0)], accuracy, found)


def _check_attacks(model: nn.Module, samples: Samples, x: Tensor, queries: int) -> None:
    """Refuse a black-box attack on other inputs than images, and labels without an output."""
    if queries and x.dim() != 4:
        raise ConfigError(
            f"the black-box attack takes images, not inputs of shape {list(x.shape[1:])}",
            where="robustness",
            fix="queries=0 leaves it out",
        )
    with eval_mode(model), torch.no_grad():
        n_outputs = logits_of(model, x).shape[1]
    if samples.labels.max() >= n_outputs:
        raise DataError(
            f"labels reach {samples.labels.max()}, the model has {n_outputs} outputs",
            where=samples.name,
            fix="give a model and samples of the same classes",
        )


@dataclass(frozen=True)
class _Tries:
    """All attacks on one batch of pixels."""

    model: nn.Module
    surrogate: nn.Module | None
    x: Tensor
    y: Tensor
    steps: int
    restarts: int
    queries: int
    seed: int

    def counts(self, epsilons: Sequence[float]) -> dict[tuple[str, float], float]:
        """How many samples stand each attack, and the summed loss under PGD, by (name, eps)."""
        found = {("none", 0.0): self._right(self.x), ("loss", 0.0): self._loss(self.x)}
        for eps in epsilons:
            for name, attacked in self._attacked(eps):
                found[(name, eps)] = self._right(attacked)
                if name == "pgd":
                    found[("loss", eps)] = self._loss(attacked)
        anything = pgd(
            self.model, self.x, self.y, eps=UNBOUNDED, steps=self.steps, generator=self._generator()
        )
        return {**found, ("pgd", UNBOUNDED): self._right(anything)}

    def _attacked(self, eps: float) -> list[tuple[str, Tensor]]:
        model, x, y = self.model, self.x, self.y
        found = [("fgsm", fgsm(model, x, y, eps=eps))]
        for name, loss in (("pgd", "cross-entropy"), ("margin", "margin")):
            moved = pgd(
                model,
                x,
                y,
                eps=eps,
                steps=self.steps,
                restarts=self.restarts,
                loss=loss,  # type: ignore[arg-type]
                generator=self._generator(),
            )
            found.append((name, moved))
        if self.queries:
            found.append(
                ("square", square(model, x, y, eps=eps, queries=self.queries, seed=self.seed))
            )
        if self.surrogate is not None:
            moved = pgd(
                self.surrogate, x, y, eps=eps, steps=self.steps, generator=self._generator()
            )
            found.append(("transfer", moved))
        return found

    def _generator(self) -> torch.Generator:
        return torch_generator(self.seed, "robustness")

    def _right(self, x: Tensor) -> float:
        return float(_right(self.model, x, self.y).sum())

    def _loss(self, x: Tensor) -> float:
        with eval_mode(self.model), torch.no_grad():
            return float(F.cross_entropy(logits_of(self.model, x).float(), self.y, reduction="sum"))


@isolated
def checks(
    accuracy: Mapping[str, Mapping[float, float]],
    clean: float,
    losses: Mapping[float, float],
    unbounded: float,
) -> tuple[Check, ...]:
    """Check for gradient masking, which overrates robustness (arXiv 1802.00420).

    accuracy: as in `Robustness`. losses: mean loss under PGD by budget, 0 without an attack.
    unbounded: accuracy where PGD may change every pixel at will. A point of accuracy is tolerated.
    """
    tried = accuracy["pgd"]

    def ahead(name: str) -> list[float]:
        """By how much PGD leaves more than another attack, by budget."""
        return [tried[eps] - accuracy[name][eps] for eps in tried]

    rising = [losses[eps] for eps in sorted(losses)]
    falling = [clean, *(tried[eps] for eps in sorted(tried))]
    found = [
        Check(
            "larger-budgets-hurt-more",
            all(b >= a for a, b in pairwise(rising))
            and all(b <= a + TOLERANCE for a, b in pairwise(falling)),
            f"accuracy {_percents(falling)}, loss {', '.join(f'{v:.2f}' for v in rising)}",
        ),
        Check(
            "no-budget-is-survived",
            unbounded <= TOLERANCE,
            f"accuracy {_percents([unbounded])} where every pixel may change",
        ),
    ]
    others = {
        "fgsm": "one step is not stronger than many",
        "margin": "another loss is not stronger",
        "square": "an attack without gradients is not stronger",
        "transfer": "another model's examples are not stronger",
    }
    # Another loss finds a few more; hidden gradients would show as many.
    allowed = {"margin": 0.05}
    for name in others:
        if name in accuracy:
            most = max(ahead(name))
            holds = most <= allowed.get(name, TOLERANCE)
            sign = "ahead by" if most > 0 else "behind by"
            evidence = f"{others[name]}: {sign} {100 * abs(most):.1f} points at most"
            found.append(Check(f"{name}-not-stronger", holds, evidence))
    return tuple(found)


def _percents(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * v:.1f}%" for v in values)
