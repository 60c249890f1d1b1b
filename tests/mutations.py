"""Small wrong changes of decision rules and competitors, and whether the tests notice them.

Run by hand: ``python tests/mutations.py [NUMBER …]``. Every mutation is made in a copy of the
source, the tests named beside it run against the copy, and those that pass are listed as survivors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A text of a file that is replaced, and the tests that should fail then."""

    file: str
    before: str
    after: str
    tests: str


CORE, BENCH = "src/expunge/", "benchmarks/src/expunge_bench/"
TRAINING, DETECTION = "tests/training", "tests/detection tests/contracts"
MUTATIONS = [
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
        "tests/contracts/test_recipes.py tests/test_pipeline.py tests/training",
    ),
    Mutation(
        CORE + "recipes.py",
        "prune=PruneConfig(fraction=0.156)",
        "prune=PruneConfig(fraction=0.256)",
        "tests/contracts/test_recipes.py",
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
        CORE + "records.py",
        "return self.memorised and wrong >= MIN_FLAGGED_FRACTION",
        "return self.memorised",
        "tests/test_records.py tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "pipeline.py",
        "return replace(outcome, chain=chain), True",
        "return replace(outcome, chain=chain), False",
        "tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "pipeline.py",
        "epochs = sum(rounds.epochs[number:]) if is_last",
        "epochs = rounds.epochs[number] if is_last",
        "tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "pipeline.py",
        "split = with_input_faults(found, before, fdr=recipe.partition.fdr)",
        "split = found",
        "tests/test_pipeline.py",
    ),
    Mutation(
        CORE + "stages.py",
        "_MIN_INPUT_FAULTS = 0.01",
        "_MIN_INPUT_FAULTS = 0.3",
        "tests/test_pipeline.py tests/evaluation",
    ),
    Mutation(
        CORE + "stages.py",
        "    elif split is not None and split.memorised_wrong_labels:",
        "    elif split is not None:",
        "tests/test_pipeline.py",
    ),
    # Detection.
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


def survives(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests pass in a copy of the source with this mutation."""
    for part in ("src", "benchmarks", "tests", "examples", "docs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    target = folder / mutation.file
    text = target.read_text(encoding="utf-8")
    if text.count(mutation.before) != 1:
        raise SystemExit(
            f"{mutation.file}: the text occurs {text.count(mutation.before)} times, "
            f"not once: {mutation.before}"
        )
    target.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
    path = os.pathsep.join([str(folder / "src"), str(folder / "benchmarks" / "src")])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *mutation.tests.split(),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    return done.returncode == 0


def main() -> None:
    chosen = [int(word) for word in sys.argv[1:]] or range(len(MUTATIONS))
    survivors = []
    for number in chosen:
        mutation = MUTATIONS[number]
        with tempfile.TemporaryDirectory() as folder:
            alive = survives(mutation, Path(folder))
        print(
            f"{number:2} {'SURVIVES' if alive else 'caught':9}{mutation.file}: {mutation.after.strip() or '(removed)'}",
            flush=True,
        )
        survivors += [number] if alive else []
    print(f"{len(survivors)} of {len(chosen)} mutations survive: {survivors}")


if __name__ == "__main__":
    main()
