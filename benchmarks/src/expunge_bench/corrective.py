"""`expunge bench corrective`: unlearning of manipulated samples of which a part is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from expunge import pipeline, stages
from expunge._core.arrays import Bools
from expunge._core.progress import Progress, silent
from expunge.demo.noise import GroundTruth, NoisyDataset
from expunge.detection.similar_samples import MIN_NAMED
from expunge.errors import ConfigError, check_range, format_ids
from expunge.models.initialisation import reinitialise
from expunge.recipes import resolve
from expunge.records import RepairResult
from expunge_bench.corrective_data import (
    MANIPULATIONS,
    TARGET_CLASS,
    Manipulated,
    Manipulation,
    manipulate,
    n_known,
)
from expunge_bench.datasets import BenchmarkDataset, Setting, State, cached_model
from expunge_bench.oracles import partition_of_mask
from expunge_bench.peers import BenchmarkCase
from expunge_bench.results import (
    Row,
    Table,
    format_mean,
    group_rows,
    mean_cells,
    paired_differences,
)
from expunge_bench.scrub import scrub
from expunge_bench.suites import RowGroup, Suite, check_names
from expunge_bench.timing import compute_seconds, timed

KNOWN_SHARES = (0.1, 0.2, 0.5, 1.0)
# Methods that do not depend on what is known, and the retraining that others are compared with.
UNREPAIRED, ORACLE, RETRAIN = "no-op", "oracle-retrain", "retrain"
_SCRUB_LEARNING_RATE = 0.01
# The least that are manipulated by default: a tenth of them are enough examples for find-more.
_MIN_MANIPULATED = 50


@dataclass(frozen=True)
class _Case:
    """A manipulated network, its data, and the samples that are known."""

    case: BenchmarkCase
    data: Manipulated
    known: Bools

    def forget(self, *, recipe: str = "default", find_more: bool = False) -> RepairResult:
        """Unlearn the known samples, and those like them if ``find_more``."""
        case = self.case
        return pipeline.forget(
            case.model,
            case.data.train,
            case.data.train.ids[self.known],
            find_more=find_more,
            recipe=recipe,
            baselines=(),
            seed=case.setting.seed,
            progress=case.progress,
        )


def _retrain(given: _Case, flagged: Bools) -> nn.Module:
    """Train a new network on the other samples, as the manipulated one was trained."""
    case, seed = given.case, given.case.setting.seed
    config = replace(case.dataset.training[case.setting.state], targets="filter")
    partition = partition_of_mask(case.data, flagged)
    network = reinitialise(case.model, seed)
    return stages.tune(
        network, case.data.train, partition, config, seed=seed, progress=case.progress
    )


def _scrub(given: _Case) -> nn.Module:
    case = given.case
    config = replace(resolve("default").tune, lr=_SCRUB_LEARNING_RATE, schedule="constant")
    return scrub(case.model, case.data.train, given.known, config, seed=case.setting.seed)


# From a case to a network; "find-more" is measured beside, for what it found.
METHODS: Mapping[str, Callable[[_Case], nn.Module]] = {
    UNREPAIRED: lambda given: given.case.model,
    "forget": lambda given: given.forget().model,
    "finetune": lambda given: given.forget(recipe="finetune-only").model,
    "ssd": lambda given: given.forget(recipe="ssd").model,
    "scrub": _scrub,
    RETRAIN: lambda given: _retrain(given, given.known),
    ORACLE: lambda given: _retrain(given, given.data.bad),
}
FIND_MORE = "find-more"
NAMES = (FIND_MORE, *METHODS)


def bench(
    dataset: BenchmarkDataset,
    *,
    manipulations: Sequence[str] = MANIPULATIONS,
    known: Sequence[float] = KNOWN_SHARES,
    names: Sequence[str] = NAMES,
    state: State = "regularised",
    seeds: Sequence[int] = (0,),
    n: int | None = None,
    manipulated: int | None = None,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each manipulation, seed, known share and method.

    Parameters
    ----------
    dataset
        CIFAR-10 or digits.
    manipulations
        ``"poison"``, ``"confusion"``.
    known
        Shares of the manipulated samples that are known, in (0, 1].
    names
        Methods, see `NAMES`.
    state
        How the manipulated network is trained. Random crops and flips move a patch, and a small
        network may not learn it then.
    seeds
        Seeds of data, networks and methods.
    n
        Training samples; the data set's default, if None.
    manipulated
        Manipulated samples; n / 50 and at least 50, if None.
    out
        Where networks, rows and tables go.
    command, progress
        The command line, for the page; called during the stages.

    Raises
    ------
    ConfigError
        If a name is unknown, a share out of range, or too small for ``"find-more"``.

    Notes
    -----
    The protocols are those of arXiv 2402.14015.
    """
    check_names("method", names, NAMES)
    check_names("manipulation", manipulations, MANIPULATIONS)
    check_range(ConfigError, {f"known {share:g}": (share, "(0, 1]") for share in known})
    size = n or dataset.default_n
    count = manipulated or max(size // 50, _MIN_MANIPULATED)
    if FIND_MORE in names:
        _check_examples(known, count)

    def keys(manipulation: Manipulation, seed: int) -> list[Row]:
        shared = {"data": dataset.name, "n": size, "manipulation": manipulation}
        shared |= {"manipulated": count, "state": state, "seed": seed}
        return [
            SUITE.key({**shared, "known": share, "method": name})
            for name in names
            for share in ((0.0,) if name in (UNREPAIRED, ORACLE) else known)
        ]

    groups = [
        RowGroup(
            keys(manipulation, seed),
            partial(
                _rows,
                dataset,
                Setting("none", state=state, seed=seed, n=size),
                manipulation=manipulation,
                count=count,
                out=out,
                progress=progress,
            ),
        )
        for manipulation in MANIPULATIONS
        if manipulation in manipulations
        for seed in seeds
    ]
    return SUITE.run(groups, out=out, command=command)


def _check_examples(known: Sequence[float], count: int) -> None:
    """Refuse shares with fewer known samples than `find-more` needs."""
    few = [share for share in known if n_known(share, count) < MIN_NAMED]
    if few:
        raise ConfigError(
            f"of {count} manipulated samples, known {format_ids(few)} names fewer than the "
            f"{MIN_NAMED} that find-more needs",
            fix="raise --manipulated or --known, or choose other methods with --method",
        )


def _rows(
    dataset: BenchmarkDataset,
    setting: Setting,
    missing: Sequence[Row],
    *,
    manipulation: Manipulation,
    count: int,
    out: Path,
    progress: Progress,
) -> Iterable[Row]:
    """Train the manipulated network and run the missing methods."""
    data = manipulate(dataset, manipulation, setting, count=count)
    is_poison = manipulation == "poison"
    truth = GroundTruth(data.train.labels, data.bad & (not is_poison), data.bad & is_poison)
    noisy = NoisyDataset(data.train, data.test, truth)
    folder = out / f"{manipulation}-{count}"
    trained = cached_model(dataset, noisy, setting, out=folder, progress=progress)
    case = BenchmarkCase(dataset, trained.model, noisy, setting, out, progress)
    for key in missing:
        known = data.known(key["known"], setting.seed) if key["known"] else data.bad
        given = _Case(case, data, known)
        found: dict[str, Any] = {}
        if key["method"] == FIND_MORE:
            work = partial(given.forget, find_more=True)
            result, seconds = timed(work, clock=compute_seconds)
            model, found = result.model, _found(result.partition.flagged, data.bad, known)
        else:
            method = METHODS[key["method"]]
            model, seconds = timed(partial(method, given), clock=compute_seconds)
        yield {**key, **measure(model, data, setting.seed), **found, "seconds": seconds}


def _found(flagged: Bools, bad: Bools, known: Bools) -> dict[str, float | None]:
    """Precision and recall among the samples that were not known."""
    others, hidden = flagged & ~known, bad & ~known
    right = float((others & hidden).sum())
    return {
        "precision": right / others.sum() if others.any() else None,
        "recall": right / hidden.sum() if hidden.any() else None,
    }


def measure(model: nn.Module, data: Manipulated, seed: int) -> dict[str, float | None]:
    """Measure what is left of the manipulation in a network.

    Returns
    -------
    dict
        ``accuracy`` on the clean test samples. ``corrected_accuracy`` on the affected ones. Of
        poison also ``attack_success``, the fraction of patched samples that are taken for the
        target, and ``healed``: of the samples that are classified right without the patch, the
        fraction that is with it.
    """
    labels, after = data.affected.labels, stages.predict(model, data.affected)
    found: dict[str, float | None] = {
        "accuracy": stages.evaluate(model, data.test, seed=seed).accuracy.value,
        "corrected_accuracy": float((after == labels).mean()),
        "attack_success": None,
        "healed": None,
    }
    if data.manipulation == "poison":
        right = stages.predict(model, data.originals) == labels
        found["attack_success"] = float((after == TARGET_CLASS).mean())
        found["healed"] = float((after == labels)[right].mean()) if right.any() else None
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over seeds with 95 % t-intervals; differences are paired by seed."""
    lines = []
    groups = group_rows(rows, "manipulation", "manipulated", "state", "n")
    for (manipulation, count, state, _), here in groups.items():
        by_method = group_rows(here, "known", "method")
        before = by_method.get((0.0, UNREPAIRED), [])
        for (share, method), found in sorted(by_method.items()):
            retrained = by_method.get((share, RETRAIN), [])
            gain = paired_differences(found, retrained, name="corrected_accuracy")
            cost = paired_differences(found, before)
            percent = partial(mean_cells, found, form=".1f", scale=100)
            lines.append(
                (
                    *(f"{manipulation} {count:,}", state, f"{100 * share:.0f}" if share else "–"),
                    *(method, str(len(found))),
                    *percent(["corrected_accuracy"]),
                    "–" if method == RETRAIN else format_mean(gain, form="+.1f", scale=100),
                    *percent(["healed", "attack_success", "accuracy"]),
                    "–" if method == UNREPAIRED else format_mean(cost, form="+.1f", scale=100),
                    *percent(["precision", "recall"]),
                    *mean_cells(found, ["seconds"], form=".1f"),
                )
            )
    head = (
        *("manipulation", "state", "known (%)", "method", "seeds", "corrected accuracy (%)"),
        *("Δ this − retrain (pp)", "healed (%)", "attack success (%)", "clean accuracy (%)"),
        *("Δ clean (pp)", "precision of found (%)", "recall of found (%)", "CPU seconds"),
    )
    return [Table(head, tuple(lines))]


SUITE = Suite(
    "Corrective unlearning",
    ("data", "n", "manipulation", "manipulated", "state", "known", "method", "seed"),
    tables,
)
