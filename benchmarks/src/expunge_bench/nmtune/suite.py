"""The rows of the benchmark: every method on the features of every encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from expunge._core.progress import Progress, silent
from expunge.nmtune.heads import NMTune
from expunge.nmtune.objectives import PRESETS
from expunge.nmtune.spectra import lsvr, singular_values, sve
from expunge_bench.nmtune.features import ADAPTED, IN_DOMAIN, Embedded, FeatureSource
from expunge_bench.nmtune.tables import spectra_page, tables
from expunge_bench.results import Row
from expunge_bench.suites import RowGroup, Suite, check_names
from expunge_bench.timing import timed

DEFAULT_METHODS = tuple(PRESETS)
SUITE = Suite(
    "Heads on noisily pre-trained encoders",
    ("data", "pretrain", "epochs", "tune", "test", "rate", "method", "seed"),
    tables,
)


def bench(
    sources: Sequence[FeatureSource],
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    out: Path,
    command: str = "",
    progress: Progress = silent,
) -> list[Row]:
    """One row for each source, noise rate of the pre-training, method and seed.

    Parameters
    ----------
    sources
        See `find_sources`.
    methods
        Presets of `expunge.nmtune.objectives.PRESETS`, and ``"adapted"``.
    seeds
        Seeds of the samples, the encoders and the heads.
    device
        Where heads are tuned.
    out
        Where encoders, features, rows, tables and ``spectra.html`` go.
    command, progress
        The command line, for the page; called during the work.

    Raises
    ------
    ConfigError
        If a method is unknown.

    Notes
    -----
    Every method chooses its learning rate on a fifth of its tuning samples: test data decide
    nothing. All methods see the same views.
    """
    check_names("method", methods, (*PRESETS, ADAPTED))

    def rows_of(source: FeatureSource, missing: Sequence[Row]) -> Iterable[Row]:
        rate, seed = missing[0]["rate"], missing[0]["seed"]
        embedded = source.embed(rate, seed=seed, progress=progress)
        for number, key in enumerate(missing):
            progress(f"{source.name} {rate:g} seed {seed}", number, len(missing))
            work = partial(_tune_and_measure, source, embedded, key, device, progress)
            measured, seconds = timed(work)
            yield {**key, **measured, "seconds": seconds}

    groups = []
    for source, seed in product(sources, seeds):
        for rate in source.rates:
            shared = {"data": source.name, **asdict(source.sizes), "rate": rate, "seed": seed}
            possible = [name for name in methods if name in source.methods]
            keys = [SUITE.key({**shared, "method": name}) for name in possible]
            groups.append(RowGroup(keys, partial(rows_of, source)))
    rows = SUITE.run(groups, out=out, command=command)
    (out / "spectra.html").write_text(spectra_page(rows), encoding="utf-8")
    return rows


def _tune_and_measure(
    source: FeatureSource, embedded: Embedded, key: Row, device: str, progress: Progress
) -> dict[str, Any]:
    """Accuracies of one head, its learning rate, and the spectrum of its features."""
    spectrum: dict[str, Any] = dict.fromkeys(("learning_rate", "sve", "lsvr", "spectrum"))
    if key["method"] == ADAPTED:
        accuracies = source.adapt(key["rate"], seed=key["seed"], progress=progress)
    else:
        head = NMTune.fit(
            embedded.views,
            embedded.labels,
            preset=key["method"],
            seed=key["seed"],
            device=device,
            progress=progress,
        )
        accuracies = {
            kind: float((head.predict(x) == embedded.test_labels).mean())
            for kind, x in embedded.tests.items()
        }
        values = singular_values(head.transform(embedded.tests[IN_DOMAIN]))
        spectrum = {
            "learning_rate": head.learning_rate,
            "sve": sve(values),
            "lsvr": lsvr(values),
            "spectrum": (values / values.sum()).round(8).tolist(),
        }
    corruptions = {kind: value for kind, value in accuracies.items() if kind != IN_DOMAIN}
    return {
        "in_domain": accuracies[IN_DOMAIN],
        "out_of_domain": float(np.mean(list(corruptions.values()))),
        "corruptions": corruptions,
        **spectrum,
    }
