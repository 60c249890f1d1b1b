"""New weights for models of transformers; other models are in tests/test_pipeline.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.models.initialisation import reinitialise

transformers = pytest.importorskip("transformers")


@pytest.fixture
def model(tmp_path):
    """A BERT as it is loaded from its files."""
    config = transformers.BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.01,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    return transformers.BertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_model_of_transformers_draws_its_weights_by_its_own_rule(is_inside, model):
    given = nn.Sequential(model) if is_inside else model
    fresh = reinitialise(given, 0)
    for new, old in zip(fresh.modules(), given.modules(), strict=True):
        if isinstance(new, nn.Linear | nn.Embedding) and new.weight.numel() > 500:
            assert not torch.equal(new.weight, old.weight)
            assert 0.009 < new.weight.std() < 0.011
        if isinstance(new, nn.Linear):
            assert not new.bias.any()


def test_what_is_frozen_stays(model):
    model.bert.embeddings.requires_grad_(False)
    fresh = reinitialise(model, 0)
    words = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(fresh.get_parameter(words), model.get_parameter(words))
    assert not torch.equal(fresh.bert.pooler.dense.weight, model.bert.pooler.dense.weight)
