"""Published detectors on the same model and samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from expunge.detection.detectors import detectors
from expunge.detection.signals import collect
from expunge_bench.datasets import Setting, cached_model
from expunge_bench.peers import BenchmarkCase, peers


@pytest.mark.parametrize("name", peers.names())
def test_peers_score_every_sample(data, tmp_path, name):
    setting = Setting("human_random1", n=100)
    dataset = data.noisy_dataset(setting)
    model = cached_model(data, dataset, setting, tmp_path).model
    output = peers.get(name)(
        BenchmarkCase(data, model, dataset, setting, tmp_path, lambda *_: None)
    )
    assert output.score.shape == output.flagged.shape == (100,)
    assert np.isfinite(output.score).all()
    assert output.flagged.dtype == bool
    assert 0 <= output.noise_rate <= 1


def test_captum_agrees_with_the_closed_form_of_self_influence_except_for_the_bias(data, tmp_path):
    setting = Setting("human_random1", n=100)
    dataset = data.noisy_dataset(setting)
    model = cached_model(data, dataset, setting, tmp_path).model
    case = BenchmarkCase(data, model, dataset, setting, tmp_path, lambda *_: None)
    theirs = np.exp(peers.get("tracin")(case).score)
    signals = collect(model, dataset.train, needs=frozenset({"head"}), precision="float32")
    ours = detectors.get("self_influence")(signals).score ** 2
    h = signals.per_sample["head_input_norm"]
    assert_allclose(theirs, ours * h**2 / (h**2 + 1), rtol=1e-4, atol=1e-9)
