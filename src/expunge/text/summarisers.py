"""Summaries to test a filter with: first sentences, central ones, any seq2seq model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from expunge.errors import ConfigError, extra_required
from expunge.text.encoders import Encoder, encoded
from expunge.text.sentences import sentences
from expunge.text.states import segmented

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Documents to summaries, one each.
Summariser = Callable[[Sequence[str]], list[str]]
Size = Literal["sentences", "words"]


def lead(size: int = 3, *, unit: Size = "sentences") -> Summariser:
    """The first sentences: that many, or as many as fit in that many words but one at least.

    >>> lead(1)(["One. Two. Three."])
    ['One.']
    """
    _check(size)

    def summarise(documents: Sequence[str]) -> list[str]:
        return [_joined(d, np.arange(len(sentences(d))), size, unit) for d in documents]

    return summarise


def centroid(encoder: Encoder, size: int = 3, *, unit: Size = "sentences") -> Summariser:
    """The sentences nearest to the document's centre, in the order of the document.

    ``cos(z_s, mean of z)`` of sentence states z, normed to length 1 (after the centroid of
    DOI 10.1016/j.ipm.2003.10.006, on states instead of words). It has no training, reads the whole
    document, and every sentence of it moves the centre. size: as of `lead`.
    """
    _check(size)

    def summarise(documents: Sequence[str]) -> list[str]:
        found = []
        for document, one in zip(documents, encoded(encoder, documents), strict=True):
            z = segmented(document, one).means
            z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
            order = np.argsort(-(z @ z.mean(axis=0)), kind="stable") if len(z) else np.arange(0)
            found.append(_joined(document, order, size, unit))
        return found

    return summarise


def generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix: str = "",
    window: int = 1024,
    batch: int = 8,
    **settings: Any,
) -> Summariser:
    """What any Hugging Face encoder–decoder says: PEGASUS, BART, T5.

    prefix: put before every document (T5: ``"summarize: "``). window: tokens that are read, the
    rest is cut off. settings: of ``model.generate``, by default greedy. The model's mode is kept.
    """
    if not model.config.is_encoder_decoder:
        raise ConfigError(f"{type(model).__name__} is no encoder–decoder")

    @torch.inference_mode()
    def summarise(documents: Sequence[str]) -> list[str]:
        was = model.training
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
        model.train(was)
        return found

    return summarise


def rouge(summaries: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, by rouge-score."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise extra_required("rouge-score", "text") from None
    kinds = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    found = [scorer.score(r, s) for r, s in zip(references, summaries, strict=True)]
    return {n: float(np.mean([f[k].fmeasure for f in found] or [0.0])) for k, n in kinds.items()}


def _joined(document: str, order: np.ndarray, size: int, unit: Size) -> str:
    """The first sentences of an order, in the order of the document."""
    spans = sentences(document)
    chosen: list[int] = []
    words = 0
    for row in order.tolist():
        start, end = spans[row].tolist()
        words += len(document[start:end].split())
        if chosen and (len(chosen) >= size if unit == "sentences" else words > size):
            break
        chosen.append(row)
    return " ".join(document[a:b] for a, b in spans[sorted(chosen)].tolist())


def _check(size: int) -> None:
    if size < 1:
        raise ConfigError(f"a summary has one sentence or word at least, not {size}")
