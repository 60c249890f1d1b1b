"""Folders of image classifiers that Transformers reads."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from expunge import cli
from expunge._core.rng import temp_seed
from expunge.export import export_pretrained_run
from oracles_specs import toml

pytestmark = pytest.mark.usefixtures("few_trees")
transformers = pytest.importorskip("transformers")
NAMES = ("dark", "light")


def vit():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        **sizes, intermediate_size=16, image_size=8, patch_size=4, num_labels=2
    )
    with temp_seed(0, "vit"):
        return transformers.ViTForImageClassification(config).eval()


def processor():
    return transformers.ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=False)


def write_spec(folder, **data):
    """A checkpoint without class names of its own, and class folders of images."""
    rng = np.random.default_rng(0)
    for k in range(40):
        path = folder / "images" / NAMES[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (8, 8, 3)) + 100 * (k % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    vit().save_pretrained(folder / "vit")
    table = {
        "recipe": "no-op",
        "baselines": [],
        "out": str(folder / "run"),
        "score": {"views": 0},
        "model": {"pretrained": "vit"},
        "data": {"train": {"path": "images"}, **data},
    }
    (folder / "spec.toml").write_text(toml(table))
    return folder / "spec.toml"


@pytest.mark.parametrize("where", ["", "vit", "own"])
def test_the_processor_is_in_the_folder_or_the_card_says_what_inputs_are(tmp_path, where):
    spec = write_spec(tmp_path, transform="own" if where == "own" else None)
    if where:
        processor().save_pretrained(tmp_path / where)
    result = CliRunner().invoke(cli.app, ["repair", str(spec)])
    assert result.exit_code == 0, result.output
    out = export_pretrained_run(spec, tmp_path / "out")
    card = (out / "README.md").read_text()
    if where:
        classify = transformers.pipeline("image-classification", str(out))
        found = classify(str(tmp_path / "images" / "dark" / "0.png"))
        assert {one["label"] for one in found} == set(NAMES)
        assert "pipeline(" in card
    else:
        assert "ViTForImageClassification.from_pretrained" in card
        assert "`uint8[b, 3, 8, 8]`, multiplied by 1/255." in card
    assert transformers.AutoConfig.from_pretrained(out).id2label == dict(enumerate(NAMES))
