"""`expunge bench detect`: noise × state of the network × detector, against the ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from expunge import stages
from expunge._core.progress import Progress, silent
from expunge.config import ScoreConfig
from expunge.demo.noise import GroundTruth
from expunge.detection.detectors import detectors
from expunge.evaluation import metrics
from expunge_bench.datasets import BenchmarkDataset, Setting, cached_model
from expunge_bench.peers import BenchmarkCase, DetectorOutput, peers
from expunge_bench.results import Row, Table, group_rows, mean_cells, noise_label
from expunge_bench.suites import RowGroup, Suite, check_names
from expunge_bench.timing import (
    compute_seconds,
    plain_pass_seconds,
    timed,
    with_peak_memory,
)


@dataclass(frozen=True)
class DefaultDetection:
    """The default scores and partition, or those with one change.

    Parameters
    ----------
    detectors
        Those that score; by default all of the defaults.
    has_held_out
        Whether held-out labels are given, which the network has not seen.
    declares_view
        Whether the data have a view of their own.
    views
        Number of random views.
    knows_rate
        Whether the partition is given the true noise rate.
    """

    detectors: tuple[str, ...] = ScoreConfig().detectors
    has_held_out: bool = False
    declares_view: bool = True
    views: int = ScoreConfig().views
    knows_rate: bool = False

    def run(self, case: BenchmarkCase) -> DetectorOutput:
        """Score and partition the samples of a case. Only `knows_rate` reads the truth."""
        data, seed = case.data, case.setting.seed
        scores = stages.score(
            case.model,
            data.train if self.declares_view else replace(data.train, view=None),
            seed=seed,
            held_out=data.held_out if self.has_held_out else None,
            detectors=self.detectors,
            views=self.views,
        )
        rate = float(data.truth.noisy.mean()) if self.knows_rate else 0.0
        partition = stages.partition(scores, seed=seed, noise_rate=rate or None)
        return DetectorOutput.of(partition.p_noisy, partition)


DEFAULTS = {
    "expunge": DefaultDetection(),
    "expunge-held-out": DefaultDetection(has_held_out=True),
    "expunge-undeclared-view": DefaultDetection(declares_view=False),
    "expunge-no-views": DefaultDetection(views=0),
    "expunge-known-rate": DefaultDetection(knows_rate=True),
    "expunge-fast": DefaultDetection(detectors=("attribution", "attribution_mass")),
}
DEFAULT_NAMES = ("expunge", "expunge-fast", "loss", "cleanlab", "tracin", "rlap-published")


def bench(
    dataset: BenchmarkDataset,
    *,
    settings: Sequence[Setting],
    names: Sequence[str] = DEFAULT_NAMES,
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each setting and detector.

    Parameters
    ----------
    dataset
        The data.
    settings
        Noise and networks, see `expunge_bench.datasets.grid`.
    names
        Of `DEFAULTS`, detectors and peers.
    out
        Where networks, rows and tables go.
    command, progress
        The command line, for the page; called during the stages.

    Raises
    ------
    ConfigError
        If a name is unknown.

    Notes
    -----
    Seconds are those of `compute_seconds`; ``passes`` divides them by those of a plain pass in the
    same process.
    """
    check_names("detector", names, detection_names())

    def rows_of(setting: Setting, missing: Sequence[Row]) -> Iterable[Row]:
        data = dataset.noisy_dataset(setting)
        model = cached_model(dataset, data, setting, out=out, progress=progress).model
        case = BenchmarkCase(dataset, model, data, setting, out, progress)
        pass_seconds = plain_pass_seconds(model, data.train)
        for key in missing:
            work = partial(run_detector, key["detector"], case)
            timed_work = partial(timed, work, clock=compute_seconds)
            (output, seconds), peak = with_peak_memory(timed_work)
            cost = {"seconds": seconds, "passes": seconds / pass_seconds, "peak_bytes": peak}
            yield {**key, **measure_detection(output, data.truth), **cost}

    groups = [
        RowGroup(
            [
                SUITE.key({"data": dataset.name, "detector": name, **setting.row_keys()})
                for name in names
            ],
            partial(rows_of, setting),
        )
        for setting in settings
    ]
    return SUITE.run(groups, out=out, command=command)


def detection_names() -> list[str]:
    """All names that a row can have: `DEFAULTS`, detectors and peers."""
    return [*DEFAULTS, *detectors.names(), *peers.names()]


def run_detector(name: str, case: BenchmarkCase) -> DetectorOutput:
    """Run one of `DEFAULTS`, a peer, or a single detector."""
    if name in DEFAULTS:
        return DEFAULTS[name].run(case)
    if name in peers.names():
        return peers.get(name)(case)
    seed = case.setting.seed
    scores = stages.score(case.model, case.data.train, seed=seed, detectors=(name,))
    partition = stages.partition(scores, seed=seed, method="mixture")
    return DetectorOutput.of(scores.values[name], partition)


def measure_detection(output: DetectorOutput, truth: GroundTruth) -> dict[str, float | None]:
    """Compare the output of a detector with the ground truth.

    Returns
    -------
    dict
        ``auroc``, ``auprc``, ``max_f1`` of the score and ``f1`` of the decision. ``miss_rate``: the
        fraction of the k noisy samples that are not among the k highest scores. ``ece``: expected
        calibration error of ``p_noisy``. ``fault_type_accuracy``: over flagged samples with one
        fault, whether it is taken for a wrong label or a corrupted input. ``flagged_rate``,
        ``noise_rate``, ``estimated_noise_rate`` and its interval, ``low`` to ``high``; whether it
        ``holds`` the noise rate. ``corrected_label_accuracy``: accuracy of the suggested labels.
        ``given_label_accuracy``. None where a number is undefined.
    """
    noisy = truth.noisy
    measured: dict[str, float | None] = dict.fromkeys(
        ("auroc", "auprc", "f1", "max_f1", "miss_rate", "ece", "fault_type_accuracy")
    )
    measured |= dict.fromkeys(("low", "high", "holds"))
    measured |= truth.detection_metrics(output.score, output.flagged)
    if noisy.any():
        top_k = np.argsort(-output.score, kind="stable")[: noisy.sum()]
        measured["miss_rate"] = float(1 - noisy[top_k].mean())
    partition = output.partition
    if partition is not None:
        measured["ece"] = metrics.calibration_error(partition.p_noisy, noisy)
        _, low, high = partition.noise_rate
        measured |= {"low": low, "high": high, "holds": float(low <= noisy.mean() <= high)}
        has_one_fault = output.flagged & (truth.label_fault ^ truth.input_fault)
        predicted = partition.p_input_fault > partition.p_label_fault
        if has_one_fault.any():
            correct = (predicted == truth.input_fault)[has_one_fault]
            measured["fault_type_accuracy"] = float(correct.mean())
    suggested = output.suggested
    return {
        **measured,
        "flagged_rate": float(output.flagged.mean()),
        "noise_rate": float(noisy.mean()),
        "estimated_noise_rate": output.noise_rate,
        "corrected_label_accuracy": (
            None if suggested is None else float((suggested == truth.labels).mean())
        ),
        "given_label_accuracy": float(1 - truth.label_fault.mean()),
    }


_QUALITY = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "max_f1": "max F1",
    "miss_rate": "miss rate @ true k",
    "ece": "ECE",
    "noise_rate": "noise rate",
    "estimated_noise_rate": "est. noise rate",
    "flagged_rate": "flagged rate",
    "fault_type_accuracy": "fault-type acc.",
    "corrected_label_accuracy": "corrected-label acc.",
}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Detection and cost: means over seeds with 95 % t-intervals."""
    quality, cost = [], []
    groups = group_rows(rows, "noise", "rate", "state", "detector", "n")
    for (noise, rate, state, detector, n), here in groups.items():
        name = (noise_label(noise, rate), state, detector)
        quality.append((*name, str(len(here)), *mean_cells(here, _QUALITY)))
        cost.append(
            (
                *(*name, f"{n:,}"),
                *mean_cells(here, ["seconds"], form=".1f"),
                *mean_cells(here, ["passes"], form=".2f"),
                *mean_cells(here, ["peak_bytes"], form=".0f", scale=1e-6),
            )
        )
    head = ("noise", "state", "detector")
    return [
        Table((*head, "seeds", *_QUALITY.values()), tuple(quality)),
        Table((*head, "n", "seconds", "plain passes", "peak MB"), tuple(cost), "Cost"),
    ]


SUITE = Suite("Detection", ("data", "n", "noise", "rate", "state", "detector", "seed"), tables)
