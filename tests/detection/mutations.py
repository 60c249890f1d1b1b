"""Small wrong changes to decision rules of detection, and whether tests catch them. Run by hand.

``python tests/detection/mutations.py [part of a module's name]`` changes a copy of the sources, one
change at a time, and runs the tests beside each. It prints the changes that survive.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# Imported once, before the processes part: each mutation then costs little more than its tests.
for heavy in ("captum.attr", "scipy.optimize", "scipy.stats", "sklearn.mixture", "torch"):
    importlib.import_module(heavy)

TESTS = Path(__file__).parent.parent
SOURCE = TESTS.parent / "src"
# (module, right, wrong)
MUTATIONS: list[tuple[str, str, str]] = [
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
        "q[rows, suggested] > q[rows, scores.labels]",
        "q[rows, suggested] >= q[rows, scores.labels]",
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
    ("noise_model_partitioner", "np.where(trusted[:, None], given, q)", "q"),
    (
        "noise_model_partitioner",
        "if model.has_noise or not is_memorised else given",
        "if True else given",
    ),
    ("noise_model", "MAX_RATE_LOSS = 0.2", "MAX_RATE_LOSS = 1.0"),
    ("noise_model", "MAX_LABEL_BIAS = 3.0", "MAX_LABEL_BIAS = 0.1"),
    ("noise_model", "_MIN_RATE_GAIN = 0.05", "_MIN_RATE_GAIN = 1.0"),
    ("noise_model", "_MIN_RATE_GAIN = 0.05", "_MIN_RATE_GAIN = -1.0"),
    ("noise_model", "_RANKING_RATE = 1e-3", "_RANKING_RATE = 0.0"),
    ("noise_model", "return self.bic[2] < self.bic[1]", "return True"),
    ("noise_model", "np.exp(-self.label_bias)", "np.exp(self.label_bias)"),
    ("noise_model", "range(s - n_model_sources)", "range(s)"),
    ("noise_model", "np.where(self.known, 1.0, right)", "right"),
    ("noise_model", "key=lambda s: (gains[s], -s)", "key=lambda s: (-gains[s], -s)"),
    (
        "noise_model",
        "return corrected if rates[1] - rates[0]",
        "return corrected if rates[0] - rates[1]",
    ),
    ("noise_model", "(parameters + 1) * penalty", "parameters * penalty"),
    ("noise_model", "np.sqrt(len(pi) / n)", "1"),
    ("transition", "-(-len(rows) // 10)", "len(rows)"),
    (
        "transition",
        'np.argsort(-rows[:, c], kind="stable")',
        'np.argsort(rows[:, c], kind="stable")',
    ),
    ("thresholds", "expected <= fdr", "1 - p <= fdr"),
    ("thresholds", "np.append(p[:-1] > p[1:], True)", "True"),
    ("label_detectors", "Detection(-_at_label(", "Detection(_at_label("),
    (
        "label_detectors",
        'Detection(-signals.per_sample["attribution"])',
        'Detection(signals.per_sample["attribution"])',
    ),
    ("label_detectors", "Detection(-np.mean([v / max(", "Detection(np.mean([v / max("),
    (
        "label_detectors",
        "others.max(axis=1) - values[rows, labels]",
        "values[rows, labels] - others.max(axis=1)",
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


def caught(module: str, right: str, wrong: str, folder: Path) -> bool:
    """Whether a test fails if the right text is replaced by the wrong one."""
    path = folder / "expunge" / "detection" / f"{module}.py"
    text = path.read_text()
    if right not in text:
        raise SystemExit(f"{module}.py does not hold: {right}")
    path.write_text(text.replace(right, wrong))
    beside = TESTS / "detection" / f"test_{module}.py"
    names = ("test_detectors.py", "test_partitions.py")
    rest = [TESTS / "detection", *(TESTS / "contracts" / name for name in names)]
    groups = [[beside], rest] if beside.exists() else [rest]
    try:
        return any(fails(files, folder) for files in groups)
    finally:
        path.write_text(text)


def fails(files: list[Path], folder: Path) -> bool:
    """Whether one of the tests fails with the sources in the folder, in a process of its own."""
    child = os.fork()
    if child == 0:
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        options = ["-x", "-q", "-p", "no:cacheprovider"]
        os.chdir(TESTS.parent)
        os._exit(pytest.main([*options, *map(str, files)]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main() -> None:
    """Try every mutation, or those of the modules whose name holds the argument."""
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [m for m in MUTATIONS if part in m[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "src"
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if fails([TESTS / "detection"], folder):
            raise SystemExit("the tests fail without a mutation")
        survivors = []
        for k, (module, right, wrong) in enumerate(chosen, 1):
            is_caught = caught(module, right, wrong, folder)
            survivors += [] if is_caught else [(module, right, wrong)]
            verdict = "caught  " if is_caught else "SURVIVES"
            sys.stdout.write(f"{k}/{len(chosen)} {verdict} {module}: {right} -> {wrong}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(survivors)} of {len(chosen)} survive\n")


if __name__ == "__main__":
    main()
