from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from expunge.errors import ConfigError, ModelError
from expunge.text.encoders import HuggingFaceEncoder, encode_spans
from expunge.text.filters import TextNoiseFilter
from expunge.text.sentences import split_sentences
from expunge.text.summarisers import centroid, lead, model_summariser, rouge
from oracles_text import encoder, news, stars, tiny_bert, tiny_t5, tiny_tokenizer

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([*news(40), *stars(20)])


@pytest.fixture(scope="module")
def bert(tokenizer):
    return tiny_bert(tokenizer)


def test_states_are_the_final_ones_without_special_tokens(bert, tokenizer):
    text = "The bank rose the shares of a team."
    found = HuggingFaceEncoder(bert, tokenizer)([text])[0]
    with torch.inference_mode():
        whole = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    assert_allclose(found.states, whole[1:-1].numpy(), atol=1e-6)
    words = [text[a:b] for a, b in found.offsets.tolist()]
    assert words == ["The", "bank", "rose", "the", "shares", "of", "a", "team", "."]


def test_long_texts_are_read_in_windows_and_every_token_once(bert, tokenizer):
    text = news(1, length=20)[0]
    made = HuggingFaceEncoder(bert, tokenizer, window=20, overlap=5)
    found = made([text])[0]
    whole = HuggingFaceEncoder(bert, tokenizer, window=20, overlap=5).tokenizer(
        text, return_offsets_mapping=True, add_special_tokens=False, truncation=False
    )
    assert_array_equal(found.offsets, np.array(whole["offset_mapping"]))
    ids = whole["input_ids"]
    slow = np.full(found.states.shape, np.nan)
    for start in range(0, len(ids), 13):  # 20, less two special tokens, less an overlap of 5
        piece = ids[start : start + 18]
        with torch.inference_mode():
            y = bert(torch.tensor([[2, *piece, 3]])).last_hidden_state[0, 1:-1]
        head = 2 if start else 0
        slow[start + head : start + len(piece)] = y[head:].numpy()
        if start + 18 >= len(ids):
            break
    assert_allclose(found.states, slow, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 50])
def test_states_do_not_depend_on_the_batch(bert, tokenizer, batch):
    texts = [*news(3, length=9), "", "team", *stars(2, length=1)]
    found = HuggingFaceEncoder(bert, tokenizer, batch=batch)(texts)
    for text, one in zip(texts, found, strict=True):
        alone = HuggingFaceEncoder(bert, tokenizer)([text])[0]
        assert_allclose(one.states, alone.states, atol=1e-5)
        assert_array_equal(one.offsets, alone.offsets)
    assert len(found[3].states) == 0
    assert HuggingFaceEncoder(bert, tokenizer)([]) == []


def test_of_an_encoder_decoder_the_encoder_speaks(tokenizer):
    model = tiny_t5(tokenizer)
    found = HuggingFaceEncoder(model, tokenizer)(["The bank rose."])[0]
    with torch.inference_mode():
        y = model.get_encoder()(**_ids(tokenizer, "The bank rose.")).last_hidden_state[0]
    assert_allclose(found.states, y[1:-1].numpy(), atol=1e-6)


def test_sentences_alone_know_nothing_of_each_other(bert, tokenizer):
    made = HuggingFaceEncoder(bert, tokenizer)
    text = "The bank rose the shares. Each galaxy orbits near one comet."
    spans = split_sentences(text)
    found = encode_spans(made, text, spans)
    parts = [made([text[a:b]])[0].states for a, b in spans.tolist()]
    assert_allclose(found.states, np.concatenate(parts), atol=1e-5)
    assert text[slice(*found.offsets[-2])] == "comet"
    assert not np.allclose(made([text])[0].states, found.states, atol=1e-3)


def test_a_filter_finds_its_encoder_by_name_again(bert, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    made = HuggingFaceEncoder.from_pretrained(str(tmp_path / "encoder"))
    filter = TextNoiseFilter.fit(news(40), stars(20), encoder=made, kind="relative")
    filter.save(tmp_path / "filter")
    loaded = TextNoiseFilter.load(tmp_path / "filter")
    text = f"{news(1, seed=3)[0]} {stars(1)[0]}"
    assert_allclose(loaded.score(text).scores, filter.score(text).scores)


def test_an_encoder_that_is_not_there_is_an_error(tmp_path, tokenizer, bert):
    with pytest.raises(ModelError, match="cannot be loaded"):
        HuggingFaceEncoder.from_pretrained(str(tmp_path))
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for device in ("cuda:99", "nowhere"):
        with pytest.raises(ConfigError, match=f"no device '{device}'"):
            HuggingFaceEncoder.from_pretrained(str(tmp_path), device=device)
    with pytest.raises(ConfigError, match="a window of more than 0 tokens"):
        HuggingFaceEncoder(bert, tokenizer, window=2)


def test_lead_takes_the_first_sentences():
    text = "One two. Three four five. Six."
    assert lead(2)([text, ""]) == ["One two. Three four five.", ""]
    assert lead(5, unit="words")([text]) == ["One two. Three four five."]
    assert lead(1, unit="words")([text]) == ["One two."]
    with pytest.raises(ConfigError, match="size must be 1 or more"):
        lead(0)


def test_centroid_takes_what_is_nearest_the_middle():
    document = f"{stars(1, length=1)[0]} {news(1, length=4)[0]}"
    summary = centroid(encoder, 2)([document])[0]
    spans = split_sentences(document)
    means = np.array([encoder([document[a:b]])[0].states.mean(axis=0) for a, b in spans.tolist()])
    z = means / np.linalg.norm(means, axis=1, keepdims=True)
    best = sorted(np.argsort(-(z @ z.mean(axis=0)))[:2].tolist())
    assert summary == " ".join(document[a:b] for a, b in spans[best].tolist())
    assert centroid(encoder, 2)([""]) == [""]


def test_any_seq2seq_model_summarises(tokenizer):
    model = tiny_t5(tokenizer).train()
    summarise = model_summariser(model, tokenizer, max_new_tokens=5, batch=2)
    found = summarise(news(3))
    assert len(found) == 3
    assert all(isinstance(summary, str) for summary in found)
    assert found == model_summariser(model, tokenizer, max_new_tokens=5)(news(3))
    assert model.training
    with pytest.raises(ConfigError, match="expected an encoder–decoder, got BertModel"):
        model_summariser(tiny_bert(tokenizer), tokenizer)


def test_rouge_is_one_for_the_same_words():
    found = rouge(["a b c", "x"], ["a b c", "y"])
    assert found == {"rouge_1": 0.5, "rouge_2": 0.5, "rouge_l": 0.5}


def _ids(tokenizer, text):
    tokens = tokenizer(text, return_tensors="pt")
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
