"""Accuracy against size."""

from __future__ import annotations

import pytest
import torch

from expunge import stages
from expunge.errors import ConfigError
from expunge.training.loop import TuneConfig
from expunge_bench import cifar, oracles, prune
from expunge_bench.datasets import Setting

pytestmark = pytest.mark.usefixtures("few_trees")


def test_every_pruned_fraction_starts_from_one_network_and_partition(data, tmp_path, monkeypatch):
    short = TuneConfig(targets="all", epochs=12, lr=0.05, batch_size=10, augment=False)
    monkeypatch.setattr(cifar, "TRAINING", {"regularised": short, "overfit": short})
    monkeypatch.setattr(cifar, "MAX_HELD_OUT", 0)
    settings = [Setting("human_random1", state="overfit", n=100)]
    split = oracles.true_partition(data.noisy_dataset(settings[0]))
    monkeypatch.setattr(stages, "partition", lambda *_, **__: split)
    tuned, pruned, train = [], [], stages.tune

    def tune(model, samples, given, *config, **settings):
        if given is None:  # the training of the noisy model
            return train(model, samples, given, *config, **settings)
        tuned.append(given)
        pruned.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return model

    monkeypatch.setattr(stages, "tune", tune)
    rows = prune.bench(data, settings=settings, fractions=(0.25, 0.5), out=tmp_path)

    assert [(r["ranking"], r["fraction"]) for r in rows] == [
        ("unpruned", 0.0),
        *((name, f) for f in (0.25, 0.5) for name in prune.RANKINGS),
    ]
    assert all((given.flagged == split.flagged).all() for given in tuned)
    assert len(tuned) == 7
    sizes = {(r["ranking"], r["fraction"]): r["parameters"] for r in rows}
    whole, quarter, half = (
        sizes[k] for k in (("unpruned", 0), ("default", 0.25), ("default", 0.5))
    )
    assert whole > quarter > half
    assert {sizes[name, 0.5] for name in prune.RANKINGS} == {half}
    assert len({w.sum().item() for w in pruned if len(w) == half}) > 1  # other units are pruned
    table = (tmp_path / "table.md").read_text()
    assert (
        f"| human_random1 | overfit | 50 | default | 1 | {100 * rows[4]['accuracy']:.1f} |" in table
    )

    monkeypatch.setattr(prune, "cached_model", None)
    assert prune.bench(data, settings=settings, fractions=(0.25, 0.5), out=tmp_path) == rows


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"fractions": (1.5,)}, "must lie in"), ({"rankings": ("randm-units",)}, "random-units")],
)
def test_impossible_fractions_and_unknown_rankings_are_refused_before_any_training(
    data, tmp_path, wrong, said
):
    with pytest.raises(ConfigError, match=said):
        prune.bench(data, settings=[Setting("none")], out=tmp_path, **wrong)
