"""A tiny encoder and documents for tests of text, and slow ways to compute the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from expunge._core.rng import generator, temp_seed
from expunge.text.encoders import TokenStates

SUBJECTS = [
    "bank",
    "market",
    "company",
    "minister",
    "team",
    "player",
    "court",
    "government",
    "group",
    "report",
]
VERBS = ["said", "rose", "fell", "won", "lost", "bought", "sold", "beat", "met", "opened"]
OBJECTS = [
    "shares",
    "profits",
    "games",
    "votes",
    "sales",
    "prices",
    "deals",
    "matches",
    "talks",
    "rights",
]
STARS = ["galaxy", "quasar", "nebula", "comet", "pulsar"]
ORBITS = ["orbits", "spirals", "radiates", "collapses", "glows"]
WIDTH = 6


def states_of(word: str) -> np.ndarray:
    """A fixed state of every word; words of the two sorts of documents lie apart."""
    state = generator(0, word.lower()).standard_normal(WIDTH)
    state[0] += 3.0 * (word.lower() in STARS + ORBITS)
    return state.astype(np.float32)


def encoder(texts: Sequence[str]) -> list[TokenStates]:
    """Words and signs as tokens; a state knows nothing of its neighbours."""
    found = []
    for text in texts:
        matches = list(re.finditer(r"\w+|[^\w\s]", text))
        states = [states_of(m[0]) for m in matches]
        offsets = np.array([m.span() for m in matches], dtype=np.int64).reshape(-1, 2)
        found.append(TokenStates(np.array(states, dtype=np.float32).reshape(-1, WIDTH), offsets))
    return found


def news(n: int, *, seed: int = 0, length: int = 6) -> list[str]:
    """Documents of simple sentences about business and sport."""
    rng = generator(seed, "news")

    def sentence() -> str:
        words = [rng.choice(w) for w in (SUBJECTS, VERBS, OBJECTS, SUBJECTS)]
        return f"The {words[0]} {words[1]} the {words[2]} of a {words[3]}."

    return [" ".join(sentence() for _ in range(length)) for _ in range(n)]


def stars(n: int, *, seed: int = 0, length: int = 6) -> list[str]:
    """Documents about the sky."""
    rng = generator(seed, "stars")

    def sentence() -> str:
        return f"Each {rng.choice(STARS)} {rng.choice(ORBITS)} near one {rng.choice(STARS)}."

    return [" ".join(sentence() for _ in range(length)) for _ in range(n)]


def slow_mahalanobis(states: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """``(z − μ)ᵀ Σ⁻¹ (z − μ)``, one state after another."""
    inverse = np.linalg.inv(covariance)
    return np.array([(z - mean) @ inverse @ (z - mean) for z in states.astype(np.float64)])


def covariance_of(basis: np.ndarray) -> np.ndarray:
    return np.linalg.inv(basis @ basis.T)


def tiny_tokenizer(texts: Sequence[str]):
    """A fast tokenizer of words and signs, with the special tokens of BERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted({w for t in texts for w in re.findall(r"\w+|[^\w\s]", t)})
    vocabulary = {w: i for i, w in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )


def tiny_bert(tokenizer):
    """A random BERT with two layers; eight numbers a token."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    with temp_seed(0, "bert"):
        return BertModel(config).eval()


def tiny_t5(tokenizer):
    """A random T5 with one layer on either side."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    with temp_seed(0, "t5"):
        return T5ForConditionalGeneration(config).eval()
