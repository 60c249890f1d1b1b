"""Small wrong changes of decision rules and competitors, and whether the tests notice them.

Run by hand: ``python tests/mutations.py [TEXT]``. It changes a copy of the sources, one change at a
time, runs the tests named beside it, and lists the changes that survive. TEXT chooses those whose
file holds it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

# Imported once, before the processes part: each mutation then costs little more than its tests.
for heavy in ("captum.attr", "scipy.optimize", "scipy.stats", "sklearn.mixture", "torch"):
    importlib.import_module(heavy)

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A text of a file that is replaced, and the tests that should fail then."""

    file: str
    right: str
    wrong: str
    tests: str


# Of the modules of detection: (module, right, wrong).
DETECTION_MUTATIONS: list[tuple[str, str, str]] = [
    ("cluster_detectors", "int(losses.argmax())", "int(losses.argmin())"),
    (
        "cluster_detectors",
        "(alive - alive.mean(axis=0)) / alive.std(axis=0)",
        "alive - alive.mean(axis=0)",
    ),
    ("cluster_detectors", "return along if auroc > 0.5 else -along", "return along"),
    ("cluster_detectors", "_MIN_GROUP_AUROC = 0.55", "_MIN_GROUP_AUROC = 0.5"),
    ("cluster_detectors", "_MIN_GROUP_AUROC = 0.55", "_MIN_GROUP_AUROC = 0.6"),
    ("cluster_detectors", "largest = np.zeros(n), separation", "largest = np.zeros(n), 0.0"),
    ("cluster_detectors", "len(alive) < 4", "len(alive) < 5"),
    (
        "uncertainty",
        "uncertainty_above_quantile(signals, 0.25)",
        "uncertainty_above_quantile(signals, 0.5)",
    ),
    ("uncertainty", "signals.logits.argmax(axis=1), q)", "signals.labels, q)"),
    ("uncertainty", "features[: max(1, len(features) // 2)]", "features[len(features) // 2 :]"),
    (
        "input_detectors",
        "uncertainty_above_quantile(signals, 0.5)",
        "uncertainty_above_quantile(signals, 0.25)",
    ),
    ("input_detectors", 'np.argsort(ranks, kind="stable")', 'np.argsort(-ranks, kind="stable")'),
    ("input_detectors", "-centred if correlation < 0 else centred", "centred"),
    ("input_detectors", "_FLIP_AUROC, _TAIL_SIZE = 0.9, 20", "_FLIP_AUROC, _TAIL_SIZE = 0.75, 20"),
    ("input_detectors", "_FLIP_AUROC, _TAIL_SIZE = 0.9, 20", "_FLIP_AUROC, _TAIL_SIZE = 0.99, 20"),
    ("input_detectors", "-distance if pairs.mean() >= _FLIP_AUROC else distance", "distance"),
    ("opinion_pool", "trusted.sum() >= MIN_TRUSTED", "trusted.sum() > MIN_TRUSTED"),
    ("opinion_pool", "MIN_TRUSTED = 100", "MIN_TRUSTED = 50"),
    ("opinion_pool", "usable = np.flatnonzero(trusted)", "pass"),
    ("opinion_pool", "bounds=[(0.0, None)]", "bounds=[(None, None)]"),
    ("memorisation", "MEMORISATION_GAP = 0.1", "MEMORISATION_GAP = 0.12"),
    ("memorisation", "MEMORISED_AGREEMENT = 0.95", "MEMORISED_AGREEMENT = 0.9"),
    (
        "memorisation",
        "return True if plain > MEMORISED_AGREEMENT else None",
        "return plain > MEMORISED_AGREEMENT",
    ),
    ("memorisation", "if a <= limit", "if a < limit"),
    ("memorisation", "int(np.argmin(agreement))", "int(np.argmax(agreement))"),
    ("memorisation", "return () if plain - augmented > MEMORISATION_GAP else", "return"),
    ("gaussian_mixture", "MIN_SAMPLES = 20", "MIN_SAMPLES = 19"),
    ("gaussian_mixture", "MIN_SAMPLES = 20", "MIN_SAMPLES = 21"),
    ("gaussian_mixture", "MAX_NOISY_SHARE = 2 / 3", "MAX_NOISY_SHARE = 0.75"),
    ("gaussian_mixture", "MAX_NOISY_SHARE = 2 / 3", "MAX_NOISY_SHARE = 0.6"),
    ("gaussian_mixture", "MIN_ODDS = 2.0", "MIN_ODDS = 1.0"),
    ("gaussian_mixture", "noisy: Bools = np.logical_or.accumulate(", "noisy: Bools = np.asarray("),
    ("gaussian_mixture", "np.logical_or.accumulate(gaps > separation)", "gaps > separation"),
    ("gaussian_mixture", "* usable[:, None], means, stds)", ", means, stds)"),
    (
        "gaussian_mixture",
        "float(u * v * (a - b) ** 2 / (two.weights_ @ two.covariances_[:, 0, 0]))",
        "1.0",
    ),
    ("gaussian_mixture", "key=lambda k: (bic[k], k)", "key=lambda k: (-bic[k], k)"),
    ("gaussian_mixture", "np.maximum.accumulate(p[order])", "p[order]"),
    ("gaussian_mixture", "np.sqrt(rows / len(e))", "1"),
    ("partitioners", "_INTERVAL_STDERRS = 1.96", "_INTERVAL_STDERRS = 1.0"),
    ("partitioners", "np.where(trusted, 0.0, faults[kind])", "faults[kind]"),
    (
        "partitioners",
        "p_noisy = 1 - (1 - p_label) * (1 - p_input)",
        "p_noisy = np.maximum(p_label, p_input)",
    ),
    (
        "partitioners",
        "found > probability[rows]",
        "found >= probability[rows]",
    ),
    ("partitioners", "float(np.hypot(width, other_width)) / 2", "(width + other_width) / 2"),
    (
        "posterior_partitioner",
        "np.max([np.zeros(n), *columns], axis=0)",
        "np.mean([np.zeros(n), *columns], axis=0)",
    ),
    ("posterior_partitioner", "(p_noisy * (1 - p_noisy)).sum()", "p_noisy.sum()"),
    ("mixture_partitioner", "inputs.p <= 0.5,", "inputs.p <= 1.0,"),
    (
        "mixture_partitioner",
        "(standardise(weighted_evidence(columns, seed)) + standardise(odds)) / 2",
        "standardise(odds)",
    ),
    ("noise_model_partitioner", "len(labels) < MIN_SAMPLES", "len(labels) < 0"),
    ("noise_model_partitioner", "or memorised is None", ""),
    ("noise_model_partitioner", "usable = inputs.p <= 0.5", "usable = inputs.p <= 1.0"),
    ("noise_model_partitioner", "if is_memorised:", "if not is_memorised:"),
    ("noise_model_partitioner", "np.where(is_given[rows, None], given, q)", "q"),
    (
        "noise_model_partitioner",
        "trusted if model.has_noise or not is_memorised else",
        "trusted if True else",
    ),
    ("noise_model", "MAX_RATE_LOSS = 0.2", "MAX_RATE_LOSS = 1.0"),
    ("noise_model", "MAX_LABEL_BIAS = 3.0", "MAX_LABEL_BIAS = 0.1"),
    ("noise_model", "_MIN_RATE_GAIN = 0.05", "_MIN_RATE_GAIN = 1.0"),
    ("noise_model", "_MIN_RATE_GAIN = 0.05", "_MIN_RATE_GAIN = -1.0"),
    ("noise_model", "_RANKING_RATE = 1e-3", "_RANKING_RATE = 0.0"),
    ("noise_rows", "return self.bic[2] < self.bic[1]", "return True"),
    ("noise_rows", "np.exp(-self.label_bias)", "np.exp(self.label_bias)"),
    ("noise_model", "range(s - n_model_sources)", "range(s)"),
    ("noise_rows", "np.where(self.known, 1.0, right)", "right"),
    ("noise_model", "key=lambda s: (gains[s], -s)", "key=lambda s: (-gains[s], -s)"),
    (
        "noise_model",
        "return corrected if rates[1] - rates[0]",
        "return corrected if rates[0] - rates[1]",
    ),
    ("noise_rows", "(parameters + 1) * penalty", "parameters * penalty"),
    ("noise_rows", "np.sqrt(n_rows / n)", "1"),
    ("transition", "-(-len(rows) // 10)", "len(rows)"),
    (
        "transition",
        'np.argsort(-rows[:, c], kind="stable")',
        'np.argsort(rows[:, c], kind="stable")',
    ),
    ("thresholds", "expected <= fdr", "1 - p <= fdr"),
    ("thresholds", "np.append(p[:-1] > p[1:], True)", "True"),
    ("label_detectors", "-by_chunks(lambda rows: log_at", "by_chunks(lambda rows: log_at"),
    (
        "label_detectors",
        'Detection(-signals.per_sample["attribution"])',
        'Detection(signals.per_sample["attribution"])',
    ),
    ("label_detectors", "Detection(-np.mean([v / max(", "Detection(np.mean([v / max("),
    (
        "class_arithmetic",
        "others.max(axis=1) - at_label(rows, labels)",
        "at_label(rows, labels) - others.max(axis=1)",
    ),
    (
        "feature_detectors",
        "return Detection(score, tuple(votes))",
        "return Detection(-score, tuple(votes))",
    ),
    ("feature_detectors", "posteriors, is_leave_one_out=True", "posteriors"),
    (
        "detectors",
        "if signals.augmented_probs is not None and signals.views:",
        "if signals.augmented_probs is not None:",
    ),
    (
        "detectors",
        "opinion_pool(informative, signals.labels, signals.trusted)",
        "opinion_pool(informative, signals.labels)",
    ),
    ("detectors", "informative = informative_sources(sources, signals)", "informative = sources"),
    ("lda", "squared[np.arange(len(y)), y] = a**2 *", "squared[np.arange(len(y)), y] ="),
    ("neighbours", "others &= np.cumsum(others, axis=1) <= k", "pass"),
    ("neighbours", "similarity[at, at + start] = -torch.inf", "pass"),
    ("pooling", "variance > 1e-6 * mean.square()", "variance > 1e6 * mean.square()"),
    ("signals", "config.n_views if config.has_views else 0", "config.n_views"),
    ("gradients", "logits.scatter(1, given[:, None], -torch.inf)", "logits"),
]

CORE, BENCH = "src/expunge/", "benchmarks/src/expunge_bench/"
TRAINING, DETECTION = "tests/training", "tests/detection tests/contracts"
OTHER_MUTATIONS = [
    # Competitors.
    Mutation(
        CORE + "training/baselines.py",
        "return small[1], small[0]",
        "return small[0], small[1]",
        TRAINING,
    ),
    Mutation(CORE + "training/baselines.py", "clean=clean[1 - k]", "clean=clean[k]", TRAINING),
    Mutation(CORE + "training/baselines.py", "keep=1 - rate * ramp", "keep=1 - ramp", TRAINING),
    Mutation(
        CORE + "training/baselines.py",
        "argsort()[:count]",
        "argsort(descending=True)[:count]",
        TRAINING,
    ),
    Mutation(
        BENCH + "peers.py",
        "score = 1 - get_label_quality_scores",
        "score = get_label_quality_scores",
        "benchmarks/tests",
    ),
    Mutation(
        BENCH + "peers.py", "return max(sides, key", "return min(sides, key", "benchmarks/tests"
    ),
    Mutation(
        BENCH + "peers.py",
        "score = np.log(np.maximum(score, 1e-12))",
        "score = -np.log(np.maximum(score, 1e-12))",
        "benchmarks/tests",
    ),
    Mutation(
        CORE + "detection/cluster_detectors.py", "losses.argmax()", "losses.argmin()", DETECTION
    ),
    Mutation(
        CORE + "recipes.py",
        "_with_epochs(retrain_filtered(recipe), 3.0)",
        "_with_epochs(retrain_filtered(recipe), 2.0)",
        "tests/test_recipes.py",
    ),
    Mutation(
        CORE + "recipes.py",
        "prune=PruneConfig(fraction=0.156)",
        "prune=PruneConfig(fraction=0.256)",
        "tests/test_recipes.py",
    ),
    # Decisions.
    Mutation(
        CORE + "evaluation/decision.py",
        "fraction < recipe.min_flagged_fraction",
        "fraction < 0",
        "tests/evaluation",
    ),
    Mutation(
        CORE + "evaluation/decision.py",
        "right[rows, partition.labels] = 1 - p",
        "right[rows, partition.labels] = p",
        "tests/evaluation",
    ),
    Mutation(CORE + "evaluation/decision.py", "lead.low > 0", "lead.value > 0", "tests/evaluation"),
    Mutation(
        CORE + "evaluation/decision.py", "found.value <= 0", "found.high <= 0", "tests/evaluation"
    ),
    Mutation(
        CORE + "evaluation/decision.py",
        "right *= (1 - partition.p_input_fault)[:, None]",
        "right *= 1",
        "tests/evaluation",
    ),
    Mutation(
        CORE + "records/partition.py",
        "return self.memorised and wrong >= MIN_FLAGGED_FRACTION",
        "return self.memorised",
        "tests/test_records.py",
    ),
    Mutation(
        CORE + "pipeline/recipe_run.py",
        "return replace(outcome, chain=chain), True",
        "return replace(outcome, chain=chain), False",
        "tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "pipeline/recipe_run.py",
        "epochs = sum(rounds.n_epochs[number:]) if is_last",
        "epochs = rounds.n_epochs[number] if is_last",
        "tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "pipeline/recipe_run.py",
        "split = with_input_faults(found, before, fdr=recipe.partition.fdr)",
        "split = found",
        "tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "stages.py",
        "_MIN_INPUT_FAULTS = 0.01",
        "_MIN_INPUT_FAULTS = 0.3",
        "tests/test_stages.py",
    ),
    Mutation(
        CORE + "stages.py",
        "    elif split is not None and split.memorised_wrong_labels:",
        "    elif split is not None:",
        "tests/test_pipeline.py",
    ),
    # Detection, also of what spans several modules.
    Mutation(
        CORE + "detection/memorisation.py",
        "return plain - augmented > MEMORISATION_GAP\n",
        "return plain - augmented > 0.5\n",
        DETECTION,
    ),
    Mutation(CORE + "detection/memorisation.py", "if a <= limit]", "if a >= limit]", DETECTION),
    Mutation(
        CORE + "detection/uncertainty.py",
        "uncertainty_above_quantile(signals, 0.25)",
        "uncertainty_above_quantile(signals, 0.75)",
        DETECTION,
    ),
    Mutation(
        CORE + "detection/opinion_pool.py",
        "usable = np.flatnonzero(trusted)",
        "usable = np.flatnonzero(~trusted)",
        DETECTION,
    ),
    Mutation(CORE + "detection/thresholds.py", "np.cumsum(1 - p)", "np.cumsum(p)", DETECTION),
    Mutation(
        CORE + "detection/partitioners.py",
        "float(np.hypot(width, other_width)) / 2",
        "width / 2",
        "tests/detection tests/contracts tests/test_pipeline.py",
    ),
    # Stages, targets, storage.
    Mutation(
        CORE + "training/targets.py",
        "partition.p_label_fault >= partition.p_input_fault",
        "partition.p_label_fault <= partition.p_input_fault",
        TRAINING,
    ),
    Mutation(
        CORE + "training/targets.py",
        "return labels, 1.0 - partition.p_noisy",
        "return labels, partition.p_noisy",
        TRAINING,
    ),
    Mutation(
        CORE + "storage/cached_stages.py",
        '"reads": {record.folder: record.key for record in self.records},',
        '"reads": {},',
        "tests/storage tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "repair_context.py",
        "        partition=_fingerprint(split),\n",
        "",
        "tests/storage tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "evaluation/audit.py",
        "np.flatnonzero(~flagged)",
        "np.flatnonzero(flagged)",
        "tests/evaluation tests/test_pipeline.py",
    ),
]


def detection_mutation(module: str, right: str, wrong: str) -> Mutation:
    """A mutation of a module of detection; the test beside the module is tried first."""
    beside = f"tests/detection/test_{module}.py"
    rest = "tests/detection tests/contracts/test_detectors.py tests/contracts/test_partitions.py"
    tests = f"{beside} {rest}" if (ROOT / beside).exists() else rest
    return Mutation(f"src/expunge/detection/{module}.py", right, wrong, tests)


def is_caught(mutation: Mutation, folder: Path) -> bool:
    """Whether a test fails if the right text is replaced by the wrong one."""
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    if mutation.right not in text:
        raise SystemExit(f"{mutation.file} does not hold: {mutation.right}")
    path.write_text(text.replace(mutation.right, mutation.wrong), encoding="utf-8")
    try:
        return fails(mutation.tests, folder)
    finally:
        path.write_text(text, encoding="utf-8")


def fails(tests: str, folder: Path) -> bool:
    """Whether one of the tests fails with the sources in the folder, in a process of its own."""
    child = os.fork()
    if child == 0:
        sys.path[:0] = [str(folder / "src"), str(folder / "benchmarks" / "src")]
        sys.dont_write_bytecode = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.chdir(folder)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests.split()]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main() -> None:
    """Try every mutation, or those of the files whose path holds the argument."""
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    everything = [*OTHER_MUTATIONS, *(detection_mutation(*m) for m in DETECTION_MUTATIONS)]
    chosen = [m for m in everything if part in m.file]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for copied in ("src", "benchmarks", "tests", "examples", "docs"):
            skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / copied, folder / copied, ignore=skip)
        for copied in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
            shutil.copy(ROOT / copied, folder / copied)
        survivors = []
        for k, mutation in enumerate(chosen, 1):
            caught = is_caught(mutation, folder)
            survivors += [] if caught else [mutation]
            verdict = "caught  " if caught else "SURVIVES"
            change = f"{mutation.right.strip()} -> {mutation.wrong.strip() or '(removed)'}"
            print(f"{k}/{len(chosen)} {verdict} {mutation.file}: {change}", flush=True)
    print(f"{len(survivors)} of {len(chosen)} mutations survive")


if __name__ == "__main__":
    main()
