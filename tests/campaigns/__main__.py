"""The whole campaign, for an hour or more: ``make campaign``. Exit 1 if anything is found."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import actions
from campaigns.readers import READERS, Prepared

# So many mutated files are read in one forked process.
_BLOCK = 100


def mutations(folder: Path, n: int, first_seed: int) -> Iterator[str]:
    """Mutated files of all readers, in equal numbers."""
    for name in READERS:
        prepared, found = Prepared(name, folder / name.replace(" ", "-")), Counter[str]()
        last = first_seed + n // len(READERS)
        for seed in range(first_seed, last, _BLOCK):
            for answer in answers(prepared, range(seed, min(seed + _BLOCK, last))):
                found[answer if answer in ("read", "refused") else "found"] += 1
                if answer not in ("read", "refused"):
                    yield answer
        report(f"mutations, {name}: {dict(found)}")


def answers(prepared: Prepared, seeds: range) -> list[str]:
    """What a reader says of mutated files. A file that ends the process is a finding."""
    found = actions.in_child(lambda: json.dumps([prepared.try_mutated(seed) for seed in seeds]))
    if found.startswith("["):
        return list(json.loads(found))
    if len(seeds) == 1:
        return [f"{prepared.name}, seed {seeds[0]}: {found}"]
    return [answer for seed in seeds for answer in answers(prepared, range(seed, seed + 1))]


def faults(folder: Path, *, kills: int, flips: int, disks: int, first_seed: int) -> Iterator[str]:
    """Kills at every access and at random times, disks of many sizes, and flipped bits."""
    random = np.random.default_rng(first_seed)
    for name in actions.ACTIONS:
        reference, tried = folder / "reference" / name, folder / "tried"
        seconds = actions.seconds_of(name, reference)
        last = int(actions.killed(actions.ACTIONS[name], folder / "counted" / name, access=-1))
        n = kills // len(actions.ACTIONS)
        for access in sorted({*np.linspace(1, last, n // 2).astype(int).tolist()}):
            yield actions.check_kill(name, tried, reference, access=access)
        for after in random.uniform(0.001, seconds, n - n // 2).tolist():
            yield actions.check_kill(name, tried, reference, after=after)
        for size in np.geomspace(4096, 2**20, disks).astype(int).tolist():
            yield actions.check_small_disk(name, tried, reference, size)
        # What a user writes elsewhere has no digest.
        n_flips = flips // (len(actions.ACTIONS) - 1) if name != "apply head" else 0
        for seed in range(first_seed, first_seed + n_flips):
            yield actions.check_flip(name, tried, reference, seed)
        report(f"{name}: {last} accesses, {n} kills, {disks} disks, {n_flips} flipped bits")


def report(line: str) -> None:
    """Say what was done."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the campaign; the number of findings, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, n in {"mutations": 100_000, "kills": 500, "flips": 1_000, "disks": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=n)
    parser.add_argument("--first-seed", type=int, default=0, help="another one: other faults")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        path, findings = Path(folder), 0
        counts = {"kills": options.kills, "flips": options.flips, "disks": options.disks}
        seed = options.first_seed
        found = faults(path, **counts, first_seed=seed)
        for finding in chain(found, mutations(path, options.mutations, seed)):
            if finding:
                report(f"FOUND {finding}")
                findings += 1
    report(f"{findings} findings")
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
