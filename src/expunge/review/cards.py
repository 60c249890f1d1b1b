"""What a reviewer sees of a sample: its input, labels, neighbours, and why it is suspected."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from expunge._core.arrays import Array, Floats, Floats32, Ints
from expunge._core.rng import subsample
from expunge.data import Samples
from expunge.data.texts import TextInputs
from expunge.detection.class_rows import by_chunks
from expunge.detection.evidence import MAD_SCALE
from expunge.errors import DataError
from expunge.records import Partition, Scores, align
from expunge.reporting.media import heat, pixels

InputKind = Literal["image", "sound", "text", "table", "none"]
MAX_SUGGESTIONS, MAX_NEIGHBOURS = 5, 8
# Numbers of a row that are shown, and the deviations from which on one is unusual.
_MAX_NUMBERS, _UNUSUAL = 400, 3.0
_STATISTICS_ROWS, _NEIGHBOUR_COLUMNS = 2000, 64
_PICTURE = (96, 480)  # height and width of a waveform and of a spectrogram


class Cards:
    """Makes the cards of a run. Nothing is read or computed before a card needs it.

    Parameters
    ----------
    partition, scores
        Of the run.
    classes
        The names of the classes.
    samples
        The training data, in any order; None: cards show no input.
    texts
        The documents, by id as text; without them the texts of the training data.
    """

    def __init__(
        self,
        partition: Partition,
        scores: Scores,
        classes: Sequence[str],
        *,
        samples: Samples | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self._partition, self._scores, self.classes = partition, scores, tuple(classes)
        self._samples = samples
        self._position = None if samples is None else align(samples.ids, partition.ids)
        self._texts = texts or _texts_of(samples)
        self.kind: InputKind = self._kind()

    def _kind(self) -> InputKind:
        if self._texts:
            return "text"
        if self._samples is None:
            return "none"
        stored = self._stored(0)
        if stored is None:
            return "none"
        if stored.dim() == 1 and self._samples.sample_rate is not None:
            return "sound"
        if pixels(stored) is not None:
            return "image"
        return "table" if stored.dim() == 1 else "none"

    def _stored(self, row: int) -> torch.Tensor | None:
        """The stored input of a row; None if it is more than one tensor."""
        if self._samples is None or self._position is None:
            return None
        stored = self._samples.inputs.batch(self._position[row : row + 1])
        return None if isinstance(stored, dict) else stored[0]

    def card(self, row: int, partition: Partition, *, blind: bool = False) -> dict[str, Any]:
        """Everything about a sample but its media, as plain values.

        Parameters
        ----------
        row
            Of the partition.
        partition
            With the probabilities by now.
        blind
            Whether suggestions and reasons are left out, so that they influence nobody.
        """
        given = int(self._partition.labels[row])
        card: dict[str, Any] = {
            "row": row,
            "id": str(self._partition.ids[row]),
            "given": given,
            "given_name": self.classes[given],
            "kind": self.kind,
        }
        if self.kind == "text":
            card["text"] = self._texts.get(card["id"], "")
        if self.kind == "table":
            card["numbers"] = self._numbers(row)
        if self.kind == "sound":
            card["seconds"] = self._seconds(row)
        if blind:
            return card
        label, input_ = partition.p_label_fault[row], partition.p_input_fault[row]
        return card | {
            "p_noisy": float(partition.p_noisy[row]),
            "p_label_fault": float(label),
            "p_input_fault": float(input_),
            "flagged": bool(partition.flagged[row]),
            "suggestions": self._suggestions(row),
            "reasons": self._reasons(row),
            "neighbours": [self.tile(int(r), partition) for r in self.neighbours(row)],
        }

    def tile(self, row: int, partition: Partition) -> dict[str, Any]:
        """The little that a grid or a list of neighbours shows."""
        tile = {
            "row": row,
            "id": str(partition.ids[row]),
            "given_name": self.classes[int(partition.labels[row])],
            "suggested_name": self.classes[int(partition.suggested_label[row])],
            "p_noisy": float(partition.p_noisy[row]),
            "flagged": bool(partition.flagged[row]),
        }
        if self.kind == "text":
            tile["text"] = self._texts.get(str(tile["id"]), "")[:160]
        return tile

    def _suggestions(self, row: int) -> list[dict[str, Any]]:
        """The likeliest other labels with their probabilities; those of the partition first."""
        given = int(self._partition.labels[row])
        probs = self._scores.evidence_probs[row].astype(np.float64)
        order = np.argsort(-probs, kind="stable")[: MAX_SUGGESTIONS + 1].tolist()
        first = int(self._partition.suggested_label[row])
        found = [k for k in dict.fromkeys([first, *order]) if k != given][:MAX_SUGGESTIONS]
        return [
            {"label": k, "name": self.classes[k], "probability": float(probs[k])}
            for k in found
            if k == first or probs[k] > 0.005
        ]

    def _reasons(self, row: int) -> list[str]:
        """Why the sample is suspected, or why it is not."""
        given, probs = int(self._partition.labels[row]), self._scores.evidence_probs[row]
        best = int(probs.argmax())
        lines = [f"The evidence gives '{self.classes[given]}' a probability of {probs[given]:.0%}"]
        if best != given:
            lines[0] += f" and '{self.classes[best]}' one of {probs[best]:.0%}"
        for name, values in self._scores.values.items():
            share = float((values < values[row]).mean())
            if share >= 0.8:
                kind = "label" if self._scores.kinds[name] == "label" else "input"
                lines.append(f"{name} ({kind}): higher than for {share:.1%} of the samples")
        return [f"{line}." for line in lines[:5]]

    # Neighbours

    @cached_property
    def _space(self) -> Floats32:
        """A row of numbers for every sample: other encoders' features, else class probabilities."""
        samples = self._samples
        if samples is not None and samples.features and self._position is not None:
            tables = [values[self._position] for values in samples.features.values()]
        else:
            layers = self._scores.loo_probs
            tables = [] if layers is None else [layers[k] for k in range(len(layers))][-2:]
            tables = tables or [self._scores.evidence_probs]
        width = sum(table.shape[1] for table in tables)
        # Random directions keep distances (Johnson and Lindenstrauss).
        shape = (width, _NEIGHBOUR_COLUMNS)
        directions = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

        def block(rows: slice) -> Floats32:
            parts = [np.asarray(table[rows], dtype=np.float32) for table in tables]
            stacked: Floats32 = np.concatenate(parts, axis=1)
            return stacked @ directions if width > _NEIGHBOUR_COLUMNS else stacked

        space = by_chunks(block, len(tables[0]))
        return np.ascontiguousarray(space - space.mean(axis=0))

    @cached_property
    def _squares(self) -> Floats32:
        squares: Floats32 = np.einsum("nd,nd->n", self._space, self._space)
        return squares

    def neighbours(self, row: int) -> Ints:
        """Rows of the nearest other samples, by features or by what the evidence says of them."""
        distance = self._squares - 2 * (self._space @ self._space[row])
        distance[row] = np.inf
        k = min(MAX_NEIGHBOURS, len(distance) - 1)
        nearest = np.argpartition(distance, k - 1)[:k] if k else np.empty(0, dtype=np.int64)
        ordered: Ints = nearest[np.argsort(distance[nearest], kind="stable")].astype(np.int64)
        return ordered

    # Numbers

    @cached_property
    def _statistics(self) -> tuple[Floats, Floats]:
        """Median and robust deviation of every column of a table, of some rows."""
        assert self._samples is not None
        rows = subsample(len(self._samples), _STATISTICS_ROWS, 0, "review statistics")
        stored = self._samples.inputs.batch(rows)
        values = np.asarray(stored, dtype=np.float64).reshape(len(rows), -1)
        middle = np.median(values, axis=0)
        spread = MAD_SCALE * np.median(np.abs(values - middle), axis=0)
        return middle, np.where(spread > 0, spread, np.maximum(values.std(axis=0), 1e-12))

    def _numbers(self, row: int) -> list[dict[str, Any]]:
        stored = self._stored(row)
        values = np.asarray(stored, dtype=np.float64).reshape(-1)[:_MAX_NUMBERS]
        middle, spread = self._statistics
        names = self._samples.columns if self._samples else ()
        deviations = (values - middle[: len(values)]) / spread[: len(values)]
        return [
            {
                "column": names[k] if names else k,
                "value": f"{value:.4g}",
                "median": f"{middle[k]:.4g}",
                "unusual": bool(abs(deviations[k]) >= _UNUSUAL),
            }
            for k, value in enumerate(values)
        ]

    # Media

    def content(self, row: int) -> str:
        """The input as text or as a ``data:`` URI, for other tools; empty if it is not known."""
        if self.kind == "text":
            return self._texts.get(str(self._partition.ids[row]), "")
        if self.kind == "table":
            return ", ".join(number["value"] for number in self._numbers(row))
        media = {"image": ("image/png", self.image), "sound": ("audio/wav", self.sound)}
        if self.kind not in media:
            return ""
        kind, make = media[self.kind]
        return f"data:{kind};base64,{base64.b64encode(make(row)).decode('ascii')}"

    def image(self, row: int) -> bytes:
        """The image of a sample as PNG, in its own size.

        Raises
        ------
        DataError
            If the samples are not images.
        """
        stored = self._stored(row) if self.kind == "image" else None
        picture = None if stored is None else pixels(stored)
        if picture is None:
            raise DataError("this sample has no image")
        return _png(picture)

    def _audio(self, row: int) -> Array:
        stored = self._stored(row) if self.kind == "sound" else None
        if stored is None:
            raise DataError("this sample has no sound")
        scale = 1.0 if stored.dtype == torch.int16 else 32767.0
        audio: Array = stored.double().mul(scale).numpy()
        return audio

    def _seconds(self, row: int) -> float:
        assert self._samples is not None
        assert self._samples.sample_rate is not None
        return len(self._audio(row)) / self._samples.sample_rate

    def sound(self, row: int) -> bytes:
        """The clip of a sample as 16-bit WAV; DataError if it is no sound."""
        audio = self._audio(row)
        assert self._samples is not None
        buffer = io.BytesIO()
        with wave.Wave_write(buffer) as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self._samples.sample_rate or 1)
            file.writeframes(np.round(audio).clip(-32768, 32767).astype("<i2").tobytes())
        return buffer.getvalue()

    def waveform(self, row: int) -> bytes:
        """The waveform of a clip as PNG: the range of the values in each column."""
        audio = self._audio(row) / 32768.0
        height, width = _PICTURE
        picture = np.zeros((height, width), dtype=np.uint8)
        for x, part in enumerate(np.array_split(audio, min(width, len(audio)))):
            low, high = (int((1 - v) / 2 * (height - 1)) for v in (part.max(), part.min()))
            picture[max(low, 0) : min(high, height - 1) + 1, x] = 255
        return _png(picture)

    def spectrogram(self, row: int) -> bytes:
        """The spectrogram of a clip as PNG, in decibels."""
        from scipy.signal import stft

        audio = self._audio(row) / 32768.0
        size = min(512, len(audio))
        _, _, values = stft(audio, nperseg=size, noverlap=size // 2)
        level = 20 * np.log10(np.abs(values) + 1e-6)
        return _png(heat(level), _PICTURE)


def _png(picture: Array, size: tuple[int, int] | None = None) -> bytes:
    from PIL import Image

    image = Image.fromarray(picture)
    if size is not None:
        image = image.resize((size[1], size[0]))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _texts_of(samples: Samples | None) -> dict[str, str]:
    """The texts of the training data by id; none if they are of another kind, or not known."""
    if samples is None or not isinstance(samples.inputs, TextInputs):
        return {}
    found = {str(name): samples.inputs.text(at) for at, name in enumerate(samples.ids.tolist())}
    return found if any(found.values()) else {}
