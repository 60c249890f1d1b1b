"""Small transformers and tokenizers with random weights, made in memory."""

from __future__ import annotations

import numpy as np
import torch

WORDS = [f"w{k}" for k in range(60)]


def tokenizer(**settings):
    """A word tokenizer of Hugging Face's kind."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **settings,
    )


def bert(classes=3, *, names=None, seed=0, layers=2, dropout=0.1):
    """A BERT classifier of width 16."""
    from transformers import BertConfig, BertForSequenceClassification

    names = names or [f"c{k}" for k in range(classes)]
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: k for k, name in enumerate(names)},
    )
    return BertForSequenceClassification(config).eval()


def documents(n, *, classes=3, wrong=0.25, seed=0, longest=30):
    """Texts whose words depend on the class, given labels and right labels."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, classes, n)
    own = len(WORDS) // classes
    texts = []
    for label in right:
        length = int(rng.integers(6, longest))
        words = np.where(
            rng.random(length) < 0.4,
            label * own + rng.integers(0, own, length),
            rng.integers(0, len(WORDS), length),
        )
        texts.append(" ".join(WORDS[w] for w in words))
    given = right.copy()
    bad = rng.permutation(n)[: int(wrong * n)]
    given[bad] = (given[bad] + rng.integers(1, classes, len(bad))) % classes
    return texts, given, right
