"""Noise for clean documents: code, links, emoji and stray sentences, with its true places.

The kinds, amounts and places follow arXiv 2212.09928: noise is inserted between sentences, each
place is drawn independently, and the amount is the fraction of noise in all tokens afterwards.
"""

from __future__ import annotations

import re
import sysconfig
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from expunge._core.rng import generator
from expunge.errors import ConfigError, DataError, check_range, did_you_mean
from expunge.text.sentences import split_sentences

TextFault = Literal["code", "url", "emoji", "sentence"]
AMOUNTS = (0.05, 0.10, 0.25, 0.50)
# Words and punctuation marks, so that amounts do not depend on the tokenizer of an encoder.
_TOKEN = re.compile(r"\w+|[^\w\s]")
_URL_WORDS = "news shop item view gallery archive blog post user media doc"
# Modules of the standard library from which lines of code are drawn.
_MODULES = "argparse ast asyncio/base_events codecs configparser copy csv datetime decimal difflib"
_MODULES += " email/message ftplib gzip http/client inspect json/encoder logging/__init__ mailbox"
_MODULES += " pathlib pdb pickle random shutil socket statistics subprocess tarfile threading"
_MODULES += " turtle typing unittest/case urllib/request uuid zipfile"


@dataclass(frozen=True)
class NoisyText:
    """A document with noise in it.

    Parameters
    ----------
    text
        The document with the noise.
    noise
        ``int64[m, 2]``. The spans of the noise in ``text``.
    clean
        The document without noise.
    """

    text: str
    noise: np.ndarray
    clean: str

    def noisy_characters(self) -> np.ndarray:
        """``bool[characters]``: whether each is noise."""
        mask = np.zeros(len(self.text), dtype=bool)
        for start, end in self.noise.tolist():
            mask[start:end] = True
        return mask

    def noisy(self, spans: np.ndarray) -> np.ndarray:
        """``bool[s]``: whether more than half of the characters of each span are noise."""
        total = np.r_[0, np.cumsum(self.noisy_characters())]
        noise = total[spans[:, 1]] - total[spans[:, 0]]
        return np.asarray(2 * noise > spans[:, 1] - spans[:, 0])


def inject(
    document: str,
    pieces: Sequence[str],
    *,
    amount: float,
    seed: int,
    name: str | int = "",
    separator: str = "\n",
) -> NoisyText:
    """Insert pieces of noise between the sentences of a document.

    Parameters
    ----------
    document
        The clean document.
    pieces
        The pieces, drawn with replacement until ``noise / (noise + clean)`` tokens reach
        ``amount``. The last one stays if it brings the amount nearer. The place of each is drawn
        from all places before, between and behind the sentences.
    amount
        The fraction of noise in all tokens, in [0, 1).
    seed, name
        The noise of a document depends on the seed and its name only.
    separator
        Stands before and behind each piece.

    Raises
    ------
    ConfigError
        If the amount lies outside [0, 1).
    DataError
        If the document has no sentence or no piece has a token.

    Examples
    --------
    >>> noisy = inject("One is here. Two is here.", ["x = 1"], amount=0.3, seed=0)
    >>> [noisy.text[a:b] for a, b in noisy.noise.tolist()]
    ['x = 1']
    """
    check_range(ConfigError, {"the amount": (amount, "[0, 1)")})
    spans = split_sentences(document)
    sizes = [count_tokens(piece) for piece in pieces]
    if not len(spans) or not any(sizes):
        raise DataError("expected a document with sentences, and pieces with tokens")
    rng = generator(seed, "text noise", name)
    wanted = count_tokens(document) * amount / (1 - amount)
    drawn = [pieces[i] for i in _draw_until(wanted, sizes, rng)]
    places = np.sort(rng.integers(0, len(spans) + 1, len(drawn)))
    starts = np.r_[spans[:, 0], len(document)][places]
    return _insert(document, starts.tolist(), drawn, separator)


def _draw_until(wanted: float, sizes: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Draw numbers of pieces until their sizes add up to about ``wanted``."""
    drawn: list[int] = []
    total = 0
    while total < wanted:
        piece = int(rng.integers(len(sizes)))
        if sizes[piece] and (total + sizes[piece] - wanted > wanted - total):
            break
        drawn.append(piece)
        total += sizes[piece]
    return drawn


def _insert(
    document: str, starts: Sequence[int], pieces: Sequence[str], separator: str
) -> NoisyText:
    """Insert a piece at each of these characters, which are in order."""
    parts, noise, last, length = [], [], 0, 0
    for start, piece in zip(starts, pieces, strict=True):
        parts += [document[last:start], separator]
        length += start - last + len(separator)
        noise.append((length, length + len(piece)))
        parts += [piece, separator]
        length += len(piece) + len(separator)
        last = start
    text = "".join([*parts, document[last:]])
    return NoisyText(text, np.array(noise, dtype=np.int64).reshape(-1, 2), document)


def count_tokens(text: str) -> int:
    """The number of words and punctuation marks."""
    return len(_TOKEN.findall(text))


def code_lines(n: int, *, seed: int, folder: Path | None = None) -> list[str]:
    """Draw lines of Python programs with two tokens or more, without comments.

    The paper draws from CodeSearchNet. Here: from ``*.py`` in a folder, by default from modules of
    the standard library, so that they differ a little between versions of Python.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    files = (
        sorted(folder.rglob("*.py")) if folder else [library / f"{m}.py" for m in _MODULES.split()]
    )
    lines = []
    for file in files:
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            text = re.sub(r'("""|\'\'\').*?\1', "", text, flags=re.DOTALL)
            lines += [line.strip() for line in text.splitlines()]
    lines = sorted({ln for ln in lines if count_tokens(ln) > 1 and not ln.startswith("#")})
    if not lines:
        raise DataError("no line of Python found", where=str(folder or library))
    return _draw(lines, n, seed, "code")


def urls(n: int, *, seed: int, words: Sequence[str] = ()) -> list[str]:
    """Random addresses of words, numbers and hashes. The paper draws them from C4.

    ``words`` make up hosts and paths; a built-in list, if empty.
    """
    rng = generator(seed, "text noise", "url")
    known = list(words) or _URL_WORDS.split()

    def word() -> str:
        return known[int(rng.integers(len(known)))]

    def url() -> str:
        host = "".join([["", "www.", "m.", "cdn."][rng.integers(4)], word(), word()[:4]])
        host += [".com", ".org", ".net", ".co.uk", ".de", ".io", ".info"][rng.integers(7)]
        path = "".join(f"/{_slug(rng, word)}" for _ in range(rng.integers(1, 4)))
        query = f"?{word()[:5]}={rng.integers(1, 10**6)}" if rng.random() < 0.4 else ""
        return f"{['http', 'https'][rng.integers(2)]}://{host}{path}{query}"

    return [url() for _ in range(n)]


def _slug(rng: np.random.Generator, word: Callable[[], str]) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return f"{rng.integers(2000, 2024)}/{rng.integers(1, 13):02d}"
    if kind == 1:
        return f"{int(rng.integers(1 << 40)):x}"
    return "-".join(word() for _ in range(rng.integers(1, 5))) + ["", ".html", ".php"][kind - 1]


def emoji(n: int, *, seed: int) -> list[str]:
    """Random pieces of one to six emoji."""
    blocks = ((0x1F300, 0x1F650), (0x1F680, 0x1F6D0), (0x1F900, 0x1FA00))
    known = [chr(c) for a, b in blocks for c in range(a, b) if unicodedata.category(chr(c)) == "So"]
    rng = generator(seed, "text noise", "emoji")
    return ["".join(rng.choice(known, rng.integers(1, 7))) for _ in range(n)]


def stray_sentences(lines: Sequence[str], n: int, *, seed: int) -> list[str]:
    """Draw sentences of another text with four tokens or more, without headings.

    The paper draws from C4. Here: from WikiText, after `untokenized` and without sentences that
    contain ``<unk>``: both would give the noise away.
    """
    text = "\n".join(line for line in map(untokenized, lines) if not line.startswith("="))
    found = sorted({text[a:b] for a, b in split_sentences(text).tolist()})
    found = [s for s in found if count_tokens(s) > 3 and "<unk>" not in s]
    if not found:
        raise DataError("no sentence of four tokens or more found")
    return _draw(found, n, seed, "sentence")


def untokenized(line: str) -> str:
    """Undo the tokenisation of a line of WikiText: ``5 @.@ 2 , "`` → ``5.2,"``."""
    line = re.sub(r" @(.)@ ", r"\1", line.strip())
    line = re.sub(r" ([,.;:!?%)\]}]|'s\b|n't\b|'(?:re|ve|ll|d|m)\b)", r"\1", line)
    line = re.sub(r"([(\[{$£€]) ", r"\1", line)
    line = re.sub(r'" ([^"]*?) "', r'"\1"', line)
    return re.sub(r" ' ([^']*?) '", r" '\1'", line).replace("s ' ", "s' ")


def noise_pieces(
    kind: str,
    n: int,
    *,
    seed: int,
    stray_lines: Sequence[str] = (),
    words: Sequence[str] = (),
) -> list[str]:
    """Draw n pieces of noise.

    Parameters
    ----------
    kind
        ``"code"``, ``"url"``, ``"emoji"`` or ``"sentence"``.
    n
        The number of pieces.
    seed
        Seed of the draw.
    stray_lines
        The text of stray sentences.
    words
        The words of addresses.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    draw: Mapping[str, Callable[[], list[str]]] = {
        "code": lambda: code_lines(n, seed=seed),
        "url": lambda: urls(n, seed=seed, words=words),
        "emoji": lambda: emoji(n, seed=seed),
        "sentence": lambda: stray_sentences(stray_lines, n, seed=seed),
    }
    if kind not in draw:
        raise ConfigError(
            f"expected a kind of noise among {', '.join(get_args(TextFault))}, got '{kind}'",
            fix=did_you_mean(kind, draw),
        )
    return draw[kind]()


def _draw(known: Sequence[str], n: int, seed: int, name: str) -> list[str]:
    rng = generator(seed, "text noise", name)
    return [known[i] for i in rng.integers(0, len(known), n).tolist()]
