"""A model that a run has cut starts another run from a spec, and is exported after it."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

import expunge
from expunge import specs
from expunge.editing.earlier_cuts import (
    EarlierCut,
    cut_again,
    cut_metadata,
    earlier_cuts,
    read_cuts,
)
from expunge.errors import ModelError
from expunge.export.exported_model import export_run
from expunge.spec_check import check_spec
from expunge.storage.weights import save_weights
from oracles_digits import clean, memorised
from oracles_specs import write_spec

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_weights_of_a_cut_model_are_loaded_into_the_cut_network(mode, tmp_path):
    example = clean().example()
    cuts = (EarlierCut({"1": (0, 3)}, mode), EarlierCut({"1": (1,), "3": (5,)}, "remove"))
    cut = cut_again(memorised(), cuts, example)
    assert earlier_cuts(copy.deepcopy(cut)) == cuts
    assert earlier_cuts(memorised()) == ()
    file = tmp_path / "model.safetensors"
    save_weights(cut, file, cut_metadata({"3": (2,)}, "remove", cut))
    assert read_cuts(file) == (*cuts, EarlierCut({"3": (2,)}, "remove"))
    save_weights(cut, file, cut_metadata({}, "remove", cut))
    assert read_cuts(file) == cuts
    spec = specs.read_spec(write_spec(tmp_path, {"model": {"weights": str(file)}}))
    found = specs.build_model(spec.model, tmp_path, 0, clean()).eval()
    torch.testing.assert_close(found(example), cut(example))
    with pytest.raises(ModelError, match="training data are needed to trace the network"):
        specs.build_model(spec.model, tmp_path, 0)


def test_other_weights_have_no_cuts(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    torch.save({"x": torch.zeros(2)}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt", "nowhere.safetensors"):
        assert read_cuts(tmp_path / name) == ()


def test_a_run_goes_on_from_a_cut_model_and_is_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = write_spec(tmp_path, {"out": "first", "baselines": []}, "first")
    model, train, validation, held_out, options = specs.load_spec(first)
    one = expunge.repair(model, train, validation, held_out=held_out, **options)
    weights = {"weights": "first/model.safetensors"}
    second = write_spec(tmp_path, {"out": "second", "baselines": [], "model": weights}, "second")
    assert check_spec(second) == []
    model, train, validation, held_out, options = specs.load_spec(second)
    example = train.example()
    torch.testing.assert_close(model.eval()(example), one.model(example))
    two = expunge.repair(model, train, validation, held_out=held_out, **options)
    assert one.plan is not None
    assert two.plan is not None
    sizes = [r.size_after.parameters for r in (one, two)]
    assert two.size_before.parameters == sizes[0]
    assert sizes[1] < sizes[0]
    exported = export_run(second, tmp_path / "out")
    loaded = expunge.load_exported_model(tmp_path / "out")
    x = validation.inputs.batch(range(len(validation)))
    expected = two.model(validation.batch(range(len(validation))))
    for found in (exported, loaded):
        torch.testing.assert_close(found(x), expected)
    assert [cut.units for cut in loaded.manifest.earlier] == [dict(one.plan.units)]
