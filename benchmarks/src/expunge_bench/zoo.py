"""`expunge bench zoo`: the decision on many small settings that no default was chosen on.

Networks, signals and scores are kept, so that a decision is measured again in seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from expunge import stages
from expunge._core.arrays import AnyFloats, Array, Bools, Ints
from expunge._core.progress import Progress, silent
from expunge.config import ScoreConfig
from expunge.demo.noise import GroundTruth
from expunge.detection.class_arithmetic import label_margin, label_margins
from expunge.detection.class_rows import logs_of
from expunge.detection.detectors import detect, needs_of
from expunge.detection.memorisation import label_agreement
from expunge.detection.principal_space import Space
from expunge.detection.probes import neighbour_probe
from expunge.detection.signals import collect
from expunge.evaluation import metrics
from expunge.records import Partition, Scores, Signals
from expunge.storage import serialization
from expunge.storage.artefacts import Artefact
from expunge_bench.peers import confident_learning
from expunge_bench.results import ResultStore, Row, Table
from expunge_bench.zoo_data import FROM_FILES, Fit, Part, ZooSetting, make_case, require_zoo_files

# What is put in, and how the network is trained; every set takes some of them in turn.
_FAULTS: tuple[tuple[str, float, Fit], ...] = (
    ("none", 0.0, "early"),
    ("symmetric", 0.2, "late"),
    ("annotator", 0.2, "half"),
    ("pair", 0.25, "late"),
    ("symmetric", 0.4, "early"),
    ("none", 0.0, "late"),
    ("inputs", 0.15, "early"),
    ("annotator", 0.2, "late"),
    ("symmetric", 0.4, "half"),
    ("ambiguous", 0.2, "half"),
    ("class", 0.15, "half"),
    ("pair", 0.25, "early"),
    ("duplicates", 0.1, "late"),
)
_DEVELOPMENT = ("iris", "cancer", "digits", "digit-images", "made4", "clusters", "moons", "words")
_REPORTED = ("wine", "made8", "made20", "imbalance", "overlap", "rings", "digit-rows", "news")
_PER_SET = 8
# Tables drawn at random, one a seed, most of whose classes overlap.
_TABLES: tuple[tuple[str, float, Fit], ...] = (
    ("none", 0.0, "early"),
    ("annotator", 0.2, "half"),
    ("none", 0.0, "late"),
    ("symmetric", 0.2, "late"),
)
_N_TABLES = 16
_IMAGES = (("none", 0.0), ("human_random1", 0.0), ("idn_20", 0.0))
# Some classes are labelled worse than others; on every set.
_BY_CLASS: tuple[tuple[str, float, Fit], ...] = (
    ("one-class", 0.3, "early"),
    ("most-frequent", 0.2, "late"),
)


def zoo_settings() -> list[ZooSetting]:
    """The designed subset: sets and seeds of `development`, and others that are `reported`."""
    found = []
    sets: tuple[tuple[Part, tuple[str, ...], int], ...] = (
        ("development", _DEVELOPMENT, 0),
        ("reported", _REPORTED, 100),
        ("reported", _DEVELOPMENT, 101),
    )
    for part, names, seed in sets:
        for number, name in enumerate(names):
            count = _PER_SET if seed < 101 else 3
            for k in range(count):
                noise, rate, fit = _FAULTS[(5 * number + k) % len(_FAULTS)]
                views = name == "digit-images" and k % 2 == 0
                found.append(ZooSetting(name, noise, rate, fit, views, 500, seed + k % 2, part))
        for noise, rate in _IMAGES if seed < 101 else ():
            found.append(ZooSetting("cifar", noise, rate, "half", True, 500, seed and 7, part))
    # Few wrong labels, among classes that overlap too.
    few_sets: tuple[tuple[Part, tuple[str, ...], int], ...] = (
        ("development", ("digits", "made4", "clusters", "moons"), 0),
        ("reported", ("news", "made8", "overlap", "rings"), 100),
    )
    for part, few, seed in few_sets:
        found += [ZooSetting(k, "symmetric", 0.05, "early", False, 500, seed, part) for k in few]
    for part, names, seed in (("development", _DEVELOPMENT, 2), ("reported", _REPORTED, 102)):
        for name in names:
            found += [ZooSetting(name, *kind, False, 500, seed, part) for kind in _BY_CLASS]
    tables: tuple[tuple[Part, int], ...] = (("development", 0), ("reported", 100))
    for part, first in tables:
        for seed in range(first, first + _N_TABLES):
            noise, rate, fit = _TABLES[seed % len(_TABLES)]
            found.append(ZooSetting("table", noise, rate, fit, False, 500, seed, part))
    return list({setting.name: setting for setting in found}.values())


KEYS = ("name", "method")
# The detectors that the partitioners need.
DETECTORS = tuple(dict.fromkeys((*ScoreConfig().detectors, "pooled_margin")))
# Noise that follows the input: the hardest to tell from hard samples.
INPUT_DEPENDENT = ("annotator", "ambiguous", "human_random1", "human_aggregate", "idn_20")


def bench(
    *,
    part: Part,
    out: Path,
    data: Path | None = None,
    cache: Path | None = None,
    settings: Sequence[ZooSetting] = (),
    methods: Sequence[str] = (),
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each setting and decision; rows that ``out`` holds are not made again.

    part: ``"development"`` or ``"reported"``. data: the folder that news and CIFAR-10 are read
    from; settings that need it are left out without. cache: where networks' signals and scores are
    kept (``out/cache``); with these a decision is measured in seconds. methods: all by default.
    Writes ``rows.jsonl``, ``table.md``, ``table.html`` and ``summary.json``.
    """
    store, cache = ResultStore(out, KEYS), cache or out / "cache"
    chosen = [s for s in settings or zoo_settings() if s.part == part]
    chosen = [s for s in chosen if data is not None or s.data not in FROM_FILES]
    if data is not None:
        require_zoo_files([s.data for s in chosen], data)
    for number, setting in enumerate(chosen):
        signals, held, truth, facts = zoo_signals(setting, cache, data)
        scores = zoo_scores(setting, signals, cache)
        common = {"name": setting.name, **asdict(setting), "n": len(signals.ids), **facts}
        for name, decide in _decisions(signals, held, scores).items():
            key = {"name": setting.name, "method": name}
            if key not in store and (not methods or name in methods):
                store.add({**common, **key, **measure(decide(), truth)})
        progress("zoo", number + 1, len(chosen))
    rows: list[Row] = list(store.rows())
    (out / "summary.json").write_text(json.dumps(summary(rows), indent=1), encoding="utf-8")
    store.write_tables("Zoo", command, tables(rows))
    return rows


def zoo_scores(setting: ZooSetting, signals: Signals, cache: Path) -> Scores:
    """The scores of a setting, made once."""
    folder = cache / f"{setting.name}.scores"
    if not (folder / "facts.json").exists():
        made = serialization.store_scores(detect(signals, DETECTORS))
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: np.ascontiguousarray(v.numpy()) for k, v in made.tensors.items()}
        save_file(tensors, folder / "tensors.safetensors")
        pq.write_table(made.tables["scores"], folder / "scores.parquet")
        (folder / "facts.json").write_text(json.dumps(made.metadata), encoding="utf-8")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "tensors.safetensors")
    kept = {k: torch.from_numpy(v) for k, v in tensors.items()}
    return serialization.load_scores(
        Artefact(facts, {"scores": pq.read_table(folder / "scores.parquet")}, kept)
    )


# What a decision is: a score, which are flagged, a rate, and its interval if there is one.
Found = tuple[AnyFloats, Bools, float, tuple[float, float] | None]


def _decisions(
    signals: Signals, held: Signals | None, scores: Scores
) -> dict[str, Callable[[], Found]]:
    """Every decision of a setting, by name."""
    assert scores.pooled is not None
    probs = softmax(np.asarray(signals.logits, dtype=np.float64), axis=1)
    pool, y = np.asarray(scores.pooled.probs, dtype=np.float64), signals.labels
    work: dict[str, Callable[[], Found]] = {
        "evidence-pool": lambda: partition_decision(
            stages.partition(scores, method="evidence-pool")
        ),
        "noise-model": lambda: partition_decision(stages.partition(scores, method="noise-model")),
        "margin": lambda: _threshold(label_margin(np.log(probs + 1e-9), y)),
        "cleanlab": lambda: cleanlab_decision(y, probs),
        "cleanlab-pool": lambda: cleanlab_decision(y, pool),
        "argmax-pool": lambda: _threshold(label_margin(np.log(pool + 1e-9), y)),
        "neighbours": lambda: _neighbours(signals),
        "loss-mixture": lambda: _loss_mixture(-np.log(probs[np.arange(len(y)), y] + 1e-9)),
    }
    if held is not None:
        options = {
            "pooled_margin": {"held_out_agreement": label_agreement(held.logits, held.labels)}
        }
        work["evidence-pool+held-out"] = lambda: partition_decision(
            stages.partition(detect(signals, DETECTORS, options), method="evidence-pool")
        )
    return work


def partition_decision(split: Partition) -> Found:
    """The decision of a partition."""
    rate, low, high = split.noise_rate
    return split.p_noisy, split.flagged, rate, (low, high)


def _threshold(margin: AnyFloats) -> Found:
    return margin, margin > 0, float((margin > 0).mean()), None


def cleanlab_decision(labels: Ints, probs: AnyFloats) -> Found:
    """Confident learning; nothing is flagged where it fails."""
    try:
        output = confident_learning(labels, probs / probs.sum(axis=1, keepdims=True))
    except (ValueError, IndexError):  # a class that nothing is confident of
        return np.zeros(len(labels)), np.zeros(len(labels), dtype=bool), 0.0, None
    return output.score, output.flagged, output.noise_rate, None


def _neighbours(signals: Signals) -> Found:
    assert signals.inputs is not None
    space, classes = Space(signals.inputs), signals.logits.shape[1]
    votes, _ = neighbour_probe(space, signals.labels, classes, n_nearest=1)
    return _threshold(label_margins(logs_of(votes), signals.labels))


def _loss_mixture(loss: AnyFloats) -> Found:
    """The upper of two Gaussian components of the loss."""
    two = GaussianMixture(2, random_state=0, reg_covar=1e-6).fit(loss[:, None])
    p = two.predict_proba(loss[:, None])[:, int(two.means_[:, 0].argmax())]
    return loss, p > 0.5, float(p.mean()), None


def measure(found: Found, truth: GroundTruth) -> dict[str, float | bool | None]:
    """Every number of a row that comes from the truth; None where it has no meaning."""
    score, flagged, rate, interval = found
    noisy, share = truth.noisy, float(truth.noisy.mean())
    row: dict[str, float | bool | None] = {"auroc": None, "f1": None, "max_f1": None}
    if noisy.any() and not noisy.all():
        row["auroc"] = float(roc_auc_score(noisy, score))
        row["f1"] = metrics.f1(noisy, flagged)
        row["max_f1"] = metrics.detection(noisy, score)["best_f1"]
    row |= {"noise_rate": share, "estimated_rate": rate, "rate_error": abs(rate - share)}
    row |= {"flagged": float(flagged.mean()), "low": None, "high": None, "holds": None}
    if interval is not None:
        low, high = interval
        row |= {"low": low, "high": high, "holds": low <= share <= high}
    return row


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Means by method over the settings; see the columns of `tables`."""
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        noisy = [row for row in own if row["auroc"] is not None]
        clean = [row["flagged"] for row in own if row["noise_rate"] == 0]
        hard = [row["f1"] for row in noisy if row["noise"] in INPUT_DEPENDENT]
        widths = [row["high"] - row["low"] for row in own if row["low"] is not None]
        held = [row["holds"] for row in own if row["holds"] is not None]
        found[method] = {
            "rows": len(own),
            "auroc": _mean(row["auroc"] for row in noisy),
            "f1": _mean(row["f1"] for row in noisy),
            "max_f1": _mean(row["max_f1"] for row in noisy),
            "loss": _mean(row["max_f1"] - row["f1"] for row in noisy),
            "f1_input_dependent": _mean(hard),
            "rate_error": _mean(row["rate_error"] for row in own),
            "coverage": _mean(held),
            "median_width": float(np.median(widths)) if widths else None,
            "clean_rows": len(clean),
            "clean_at_most_2_percent": sum(share <= 0.02 for share in clean),
            "clean_most_flagged": max(clean, default=None),
        }
    return found


def _mean(values: Any) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def tables(rows: Sequence[Row]) -> list[Table]:
    """The summary by method, and every setting by itself."""
    head = ("method", "rows", "AUROC", "own F1", "max F1", "loss", "F1, input-dependent")
    more = ("rate error", "interval holds", "median width", "clean ≤ 2 %", "clean, most flagged")
    lines = []
    for method, s in summary(rows).items():
        names = ("auroc", "f1", "max_f1", "loss", "f1_input_dependent", "rate_error", "coverage")
        numbers = [_cell(s[name]) for name in (*names, "median_width")]
        count = f"{s['clean_at_most_2_percent']} of {s['clean_rows']}"
        clean = (count, _cell(s["clean_most_flagged"]))
        lines.append((method, str(s["rows"]), *numbers, *clean))
    each = [(row["name"], row["method"], *(_cell(row[k]) for k in _COLUMNS)) for row in rows]
    return [
        Table((*head, *more), tuple(lines), "Means over settings"),
        Table(("setting", "method", *_COLUMNS), tuple(each), "Every setting"),
    ]


_COLUMNS = ("auroc", "f1", "max_f1", "noise_rate", "estimated_rate", "low", "high", "flagged")


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def zoo_signals(
    setting: ZooSetting, cache: Path, data: Path | None = None
) -> tuple[Signals, Signals | None, GroundTruth, dict[str, float]]:
    """Signals of a setting's training and held-out samples, the truth, and what they cost."""
    file = cache / f"{setting.name}.safetensors"
    if not file.exists():
        start = time.process_time()
        case = make_case(setting, data)
        trained = time.process_time() - start
        needs = needs_of(ScoreConfig().detectors)
        views = ScoreConfig().views if setting.views else 0
        train = collect(case.model, case.train, needs=needs, views=views)
        scored = time.process_time() - start - trained
        held = None
        if case.held_out is not None:
            held = collect(case.model, case.held_out)
        facts = np.array([case.fit, trained, scored])
        truth = case.truth
        faults = {"labels": truth.labels, "label": truth.label_fault, "input": truth.input_fault}
        tensors = {"facts": facts, **{f"truth.{k}": v for k, v in faults.items()}}
        tensors |= {f"train.{k}": v for k, v in _arrays(train).items()}
        tensors |= {f"held.{k}": v for k, v in _arrays(held).items()} if held else {}
        cache.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file)
    tensors = load_file(file)
    truth = GroundTruth(tensors["truth.labels"], tensors["truth.label"], tensors["truth.input"])
    held = _signals("held", tensors) if "held.ids" in tensors else None
    names = ("fit", "train_seconds", "score_seconds")
    return (
        _signals("train", tensors),
        held,
        truth,
        dict(zip(names, tensors["facts"].tolist(), strict=True)),
    )


def _arrays(signals: Signals) -> dict[str, Array]:
    names = ("ids", "labels", "logits", "augmented_probs", "augmented_loss", "inputs")
    found = {k: v for k in names if (v := getattr(signals, k)) is not None}
    for number, (name, values) in enumerate(signals.features.items()):
        found[f"feature.{number:03d}.{name}"] = values
    return {**found, "views": np.array([signals.views])}


def _signals(kind: str, tensors: dict[str, Array]) -> Signals:
    own = {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}
    layers = sorted(k for k in own if k.startswith("feature."))
    features = {k.split(".", 2)[2]: own.pop(k) for k in layers}
    views = int(own.pop("views")[0])
    return Signals(**own, features=features, views=views)  # type: ignore[arg-type]
