"""`expunge bench review`: what a reviewer's answers are worth, by number and by how one asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from expunge import stages
from expunge._core.arrays import Bools, Ints
from expunge._core.progress import Progress, silent
from expunge.data import Samples
from expunge.demo.noise import GroundTruth
from expunge.demo.reviewer import ASKING, Asking, Reviewer, n_classes_of, simulate_review
from expunge.evaluation import metrics
from expunge.records import Partition
from expunge.review import Review
from expunge.review.estimation import ReviewModel
from expunge.storage import serialization
from expunge.storage.run_folder import open_run
from expunge_bench.datasets import BenchmarkDataset, Setting, cached_model
from expunge_bench.results import Row, Table, group_rows
from expunge_bench.suites import RowGroup, Suite
from expunge_bench.zoo import zoo_scores, zoo_signals
from expunge_bench.zoo_data import ZooSetting

ANSWERS = (0, 50, 100, 200)
REVIEWERS = {
    "careful": Reviewer(0.03),
    "lazy": Reviewer(0.03, lazy=0.3),
    "lazy, suggestions after": Reviewer(0.03, lazy=0.3, suggestions="after"),
}
REPETITIONS = 20
# With --accuracy a network is tuned for the first repetition, for this many epochs.
_TUNE_EPOCHS = 6


class ReviewCase(NamedTuple):
    """A partition to review and the truth about it.

    accuracy: tunes the network on a partition and returns its accuracy on clean test samples.
    """

    partition: Partition
    truth: GroundTruth
    accuracy: Callable[[Partition], float] | None = None


def bench(
    dataset: BenchmarkDataset,
    *,
    settings: Sequence[Setting],
    answers: Sequence[int] = ANSWERS,
    repetitions: int = REPETITIONS,
    with_accuracy: bool = False,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each setting, reviewer, way of asking and number of answers.

    Parameters
    ----------
    dataset, settings
        The data, noise and networks; see `expunge_bench.datasets.grid`.
    answers
        Numbers of answers; 0: none.
    repetitions
        How often each review is simulated.
    with_accuracy
        Whether a network is tuned on the partitions of the first repetition.
    out
        Where networks, scores, rows and tables go. Scores that are there are not made again.
    command, progress
        The command line, for the page; called during the stages.
    """

    def case(setting: Setting) -> ReviewCase:
        data = dataset.noisy_dataset(setting)
        model = cached_model(dataset, data, setting, out=out, progress=progress).model
        header = {"benchmark": "review", **setting.row_keys(), "train": data.train.fingerprint()}
        with open_run(out / "scores" / setting.name, header) as run:
            artefact = run.stage(
                "1-score",
                header,
                lambda: serialization.SCORES.store(
                    stages.score(model, data.train, seed=setting.seed, progress=progress)
                ),
            )
        split = stages.partition(serialization.SCORES.load(artefact), seed=setting.seed)

        def accuracy(partition: Partition) -> float:
            tuned = stages.tune(
                model, data.train, partition, epochs=_TUNE_EPOCHS, seed=setting.seed
            )
            return _accuracy(stages.predict(tuned, data.test), data.test)

        return ReviewCase(split, data.truth, accuracy if with_accuracy else None)

    groups = [
        _group(
            {"data": dataset.name, **setting.row_keys()},
            partial(case, setting),
            answers,
            repetitions,
        )
        for setting in settings
    ]
    return SUITE.run(groups, out=out, command=command)


def bench_zoo(
    settings: Sequence[ZooSetting],
    *,
    saved: Path,
    answers: Sequence[int] = ANSWERS,
    repetitions: int = REPETITIONS,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """The same on the saved signals and scores of `expunge bench zoo`."""

    def case(setting: ZooSetting) -> ReviewCase:
        progress("review", settings.index(setting), len(settings))
        signals, _, truth, _ = zoo_signals(setting, saved)
        return ReviewCase(stages.partition(zoo_scores(setting, signals, saved)), truth)

    groups = []
    for setting in settings:
        keys = {"data": setting.data, "n": 0, "noise": setting.noise, "rate": setting.rate}
        keys |= {"state": setting.fit, "seed": setting.seed}
        groups.append(_group(keys, partial(case, setting), answers, repetitions))
    return SUITE.run(groups, out=out, command=command)


def _accuracy(predicted: Ints, test: Samples) -> float:
    return float((predicted == test.labels).mean())


def _group(
    keys: Row, case: Callable[[], ReviewCase], answers: Sequence[int], repetitions: int
) -> RowGroup:
    """The rows of a setting; its case is made once, if a row is missing."""
    combinations = [
        {"reviewer": who, "asking": how, "answers": n}
        for who in REVIEWERS
        for how in ASKING
        for n in answers
        if n or (who, how) == (next(iter(REVIEWERS)), ASKING[0])
    ]

    def rows_of(missing: Sequence[Row]) -> Iterable[Row]:
        found = case()
        for key in missing:
            yield {**key, **measure_review(found, key, repetitions)}

    return RowGroup([SUITE.key({**keys, **more}) for more in combinations], rows_of)


def measure_review(case: ReviewCase, key: Row, repetitions: int) -> dict[str, float | None]:
    """Simulate reviews and compare what they give with the truth: means over repetitions.

    Returns
    -------
    dict
        ``f1`` of the decision, ``worst_f1`` its lower decile, ``max_f1`` the best that a threshold
        on the partition without answers reaches; ``rate_error``, root mean square; ``coverage`` and
        ``width`` of the interval; ``ece`` of the samples that were not shown; ``noise_rate``.
        ``accuracy`` of a tuned network. None where a number is undefined.
    """
    n, truth = int(key["answers"]), case.truth
    reviewer, asking = REVIEWERS[key["reviewer"]], key["asking"]
    reviews = [
        _one_review(case, n, reviewer, asking, seed) for seed in range(repetitions if n else 1)
    ]
    noisy = truth.noisy
    has_both = bool(noisy.any() and not noisy.all())
    f1 = [metrics.f1(noisy, split.flagged) for split, _ in reviews] if has_both else []
    rates = np.array([split.noise_rate for split, _ in reviews])
    share = float(noisy.mean())
    designed = [review is None or review.is_design_based for _, review in reviews]
    covered = (rates[:, 1] <= share) & (share <= rates[:, 2])
    return {
        "noise_rate": share,
        "f1": float(np.mean(f1)) if f1 else None,
        "worst_f1": float(np.quantile(f1, 0.1)) if f1 else None,
        "max_f1": metrics.detection(noisy, case.partition.p_noisy)["best_f1"] if f1 else None,
        "rate_error": float(np.sqrt(np.mean((rates[:, 0] - share) ** 2))),
        "coverage": float(covered.mean()) if all(designed) else None,
        "width": float((rates[:, 2] - rates[:, 1]).mean()) if all(designed) else None,
        "ece": _mean_calibration_error([split for split, _ in reviews], noisy),
        "accuracy": case.accuracy(reviews[0][0]) if case.accuracy else None,
    }


def _mean_calibration_error(splits: Sequence[Partition], noisy: Bools) -> float | None:
    """The calibration error of the samples that were not shown; None if all were."""
    errors = []
    for split in splits:
        rest = np.ones(len(noisy), dtype=bool) if split.reviewed is None else ~split.reviewed
        if rest.any():
            errors.append(metrics.calibration_error(split.p_noisy[rest], noisy[rest]))
    return float(np.mean(errors)) if errors else None


def _one_review(
    case: ReviewCase, n: int, reviewer: Reviewer, asking: Asking, seed: int
) -> tuple[Partition, Review | None]:
    if not n:
        return case.partition, None
    answers = simulate_review(
        case.partition, case.truth, n=n, reviewer=reviewer, asking=asking, seed=seed
    )
    review = ReviewModel(case.partition, n_classes_of(case.partition, case.truth)).apply(answers)
    return review.partition, review


_COLUMNS = {
    "f1": "F1",
    "worst_f1": "F1, worst decile",
    "max_f1": "max F1 before",
    "rate_error": "rate error (RMS)",
    "coverage": "interval coverage",
    "width": "interval width",
    "ece": "ECE",
    "accuracy": "accuracy",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Means over settings by number of answers, and every kind of noise by itself."""
    head = ("reviewer", "asking", "answers", "settings", *_COLUMNS.values())
    overall = []
    for (who, how, n), here in group_rows(rows, "reviewer", "asking", "answers").items():
        overall.append((who, how, str(n), str(len(here)), *_cells(here)))
    each = []
    keys = ("data", "noise", "rate", "state", "reviewer", "asking", "answers")
    for values, here in group_rows(rows, *keys).items():
        each.append((*(str(v) for v in values), str(len(here)), *_cells(here)))
    return [
        Table(head, tuple(overall), "Means over settings"),
        Table((*keys, "seeds", *_COLUMNS.values()), tuple(each), "Every setting"),
    ]


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    found = []
    for name in _COLUMNS:
        values = [row[name] for row in rows if row.get(name) is not None]
        # Errors are averaged as squares.
        mean = np.sqrt(np.mean(np.square(values))) if name == "rate_error" else np.mean(values or 0)
        found.append(f"{mean:.3f}" if values else "–")
    return tuple(found)


SUITE = Suite(
    "Review",
    ("data", "n", "noise", "rate", "state", "seed", "reviewer", "asking", "answers"),
    tables,
)
