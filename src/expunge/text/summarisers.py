"""Summarisers to evaluate a filter with: lead, centroid, and any encoder–decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from expunge.errors import ConfigError, check_range, extra_required
from expunge.text.encoders import Encoder, encode_texts
from expunge.text.sentences import split_sentences
from expunge.text.states import group_by_sentence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# From documents to their summaries, one each.
Summariser = Callable[[Sequence[str]], list[str]]
SizeUnit = Literal["sentences", "words"]


def lead(size: int = 3, *, unit: SizeUnit = "sentences") -> Summariser:
    """Summarise by the first sentences.

    Parameters
    ----------
    size
        The number of sentences; or of words, at most, but at least one sentence. 1 or more.
    unit
        ``"sentences"`` or ``"words"``.

    Examples
    --------
    >>> lead(1)(["One. Two. Three."])
    ['One.']
    """
    check_range(ConfigError, {"size": (size, "[1, inf)")}, where="summary")

    def summarise(documents: Sequence[str]) -> list[str]:
        return [_join_first(d, np.arange(len(split_sentences(d))), size, unit) for d in documents]

    return summarise


def centroid(encoder: Encoder, size: int = 3, *, unit: SizeUnit = "sentences") -> Summariser:
    """Summarise by the sentences nearest to the document's centroid, in the document's order.

    The score of sentence s is ``cos(z_s, mean of z)``, with sentence states z of length 1. It needs
    no training and reads the whole document; every sentence moves the centroid.

    Parameters
    ----------
    encoder
        A function from texts to `TokenStates`.
    size, unit
        See `lead`.

    References
    ----------
    Centroid-based summarization, https://doi.org/10.1016/j.ipm.2003.10.006; here with states
    instead of words.
    """
    check_range(ConfigError, {"size": (size, "[1, inf)")}, where="summary")

    def summarise(documents: Sequence[str]) -> list[str]:
        found = []
        for document, one in zip(documents, encode_texts(encoder, documents), strict=True):
            z = group_by_sentence(document, one).means
            z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
            order = np.argsort(-(z @ z.mean(axis=0)), kind="stable") if len(z) else np.arange(0)
            found.append(_join_first(document, order, size, unit))
        return found

    return summarise


def model_summariser(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix: str = "",
    window: int = 1024,
    batch: int = 8,
    **settings: Any,
) -> Summariser:
    """Summarise by a Hugging Face encoder–decoder: PEGASUS, BART, T5.

    Parameters
    ----------
    model, tokenizer
        The model, on its device, and its tokenizer. The mode of the model is restored.
    prefix
        Inserted before every document (T5: ``"summarize: "``).
    window
        The tokens of a document that are read; the rest is ignored.
    batch
        Documents in a batch.
    settings
        Arguments of ``model.generate``; greedy by default.

    Raises
    ------
    ConfigError
        If the model is no encoder–decoder.
    """
    if not model.config.is_encoder_decoder:
        raise ConfigError(f"expected an encoder–decoder, got {type(model).__name__}")

    @torch.inference_mode()
    def summarise(documents: Sequence[str]) -> list[str]:
        was_training = model.training
        model.eval()
        found: list[str] = []
        for start in range(0, len(documents), batch):
            texts = [prefix + d for d in documents[start : start + batch]]
            tokens = tokenizer(
                texts, truncation=True, max_length=window, padding=True, return_tensors="pt"
            ).to(model.device)
            ids = model.generate(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                **{"num_beams": 1, "do_sample": False, "max_new_tokens": 64, **settings},
            )
            found += tokenizer.batch_decode(ids, skip_special_tokens=True)
        model.train(was_training)
        return found

    return summarise


def rouge(summaries: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, computed by rouge-score."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise extra_required("rouge-score", "text") from None
    kinds = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    found = [scorer.score(r, s) for r, s in zip(references, summaries, strict=True)]
    return {n: float(np.mean([f[k].fmeasure for f in found] or [0.0])) for k, n in kinds.items()}


def _join_first(document: str, order: np.ndarray, size: int, unit: SizeUnit) -> str:
    """Join the first sentences of an order, in the order of the document."""
    spans = split_sentences(document)
    chosen: list[int] = []
    words = 0
    for row in order.tolist():
        start, end = spans[row].tolist()
        words += len(document[start:end].split())
        if chosen and (len(chosen) >= size if unit == "sentences" else words > size):
            break
        chosen.append(row)
    return " ".join(document[a:b] for a, b in spans[sorted(chosen)].tolist())
