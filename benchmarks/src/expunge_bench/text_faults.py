"""Sentences that do not belong, put into clean documents, and the truth about where they are.

The kinds, amounts and places of arXiv 2212.09928: noise stands between sentences, every place
drawn by itself; the amount is the share of noise in all tokens afterwards.
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
from expunge.errors import ConfigError, DataError
from expunge.text.sentences import split_sentences

TextFault = Literal["code", "url", "emoji", "sentence"]
AMOUNTS = (0.05, 0.10, 0.25, 0.50)
# Words and signs: amounts do not depend on an encoder's tokenizer.
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORDS = "news shop item view gallery archive blog post user media doc"
# Modules of the standard library that lines of code are taken from.
_MODULES = "argparse ast asyncio/base_events codecs configparser copy csv datetime decimal difflib"
_MODULES += " email/message ftplib gzip http/client inspect json/encoder logging/__init__ mailbox"
_MODULES += " pathlib pdb pickle random shutil socket statistics subprocess tarfile threading"
_MODULES += " turtle typing unittest/case urllib/request uuid zipfile"


@dataclass(frozen=True)
class NoisyText:
    """A document with noise in it, and the truth: ``noise`` holds the spans, ``int64[m, 2]``."""

    text: str
    noise: np.ndarray
    clean: str

    def characters(self) -> np.ndarray:
        """``bool[characters]``: which of them are noise."""
        found = np.zeros(len(self.text), dtype=bool)
        for start, end in self.noise.tolist():
            found[start:end] = True
        return found

    def noisy(self, spans: np.ndarray) -> np.ndarray:
        """``bool[s]``: spans of which more than half of the characters are noise."""
        total = np.r_[0, np.cumsum(self.characters())]
        return 2 * (total[spans[:, 1]] - total[spans[:, 0]]) > spans[:, 1] - spans[:, 0]


def inject(
    document: str,
    pieces: Sequence[str],
    *,
    amount: float,
    seed: int,
    name: str | int = "",
    separator: str = "\n",
) -> NoisyText:
    """A document with ``amount`` of its tokens noise: pieces drawn at random, between sentences.

    Pieces are drawn with replacement until ``noise / (noise + clean)`` tokens reach ``amount``; the
    last one stays if that comes nearer. Every piece stands at a place drawn by itself from all
    places before, between and behind the sentences, between two separators. name: which document
    this is: its noise depends on the seed and the name, on no other document.
    ConfigError for an amount outside [0, 1), DataError for an empty document or no pieces.
    """
    if not 0 <= amount < 1:
        raise ConfigError(f"the amount must lie in [0, 1), not {amount}", fix="0.5 means half")
    spans = split_sentences(document)
    sizes = np.array([tokens(piece) for piece in pieces])
    if not len(spans) or not (sizes > 0).any():
        raise DataError("noise needs a document with sentences, and pieces with tokens")
    rng = generator(seed, "text noise", name)
    wanted = tokens(document) * amount / (1 - amount)
    drawn: list[int] = []
    total = 0
    while total < wanted:
        at = int(rng.integers(len(pieces)))
        if sizes[at] and (total + sizes[at] - wanted > wanted - total):
            break
        drawn.append(at)
        total += int(sizes[at])
    places = np.sort(rng.integers(0, len(spans) + 1, len(drawn)))
    cuts = np.r_[spans[:, 0], len(document)][places]
    parts, noise, last, length = [], [], 0, 0
    for cut, at in zip(cuts.tolist(), drawn, strict=True):
        parts += [document[last:cut], separator]
        length += cut - last + len(separator)
        noise.append((length, length + len(pieces[at])))
        parts += [pieces[at], separator]
        length += len(pieces[at]) + len(separator)
        last = cut
    text = "".join([*parts, document[last:]])
    return NoisyText(text, np.array(noise, dtype=np.int64).reshape(-1, 2), document)


def tokens(text: str) -> int:
    """How many words and signs."""
    return len(_TOKEN.findall(text))


def code(n: int, *, seed: int, folder: Path | None = None) -> list[str]:
    """Random lines of Python programs, two tokens or more each, without comments.

    Published: CodeSearchNet. Here: ``*.py`` of a folder, by default modules of the standard
    library, so that they differ a little between versions of Python.
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
    lines = sorted({ln for ln in lines if tokens(ln) > 1 and not ln.startswith("#")})
    if not lines:
        raise DataError("there are no lines of Python", where=str(folder or library))
    return _drawn(lines, n, seed, "code")


def urls(n: int, *, seed: int, words: Sequence[str] = ()) -> list[str]:
    """Random addresses. Published: those in C4. Here: put together from words, numbers and hashes.

    words: of hosts and paths; a few of our own if there are none.
    """
    rng = generator(seed, "text noise", "url")
    known = list(words) or [
        "news",
        "shop",
        "item",
        "view",
        "gallery",
        "archive",
        "blog",
        "post",
        "user",
        "media",
        "doc",
    ]

    def word() -> str:
        return known[int(rng.integers(len(known)))]

    def one() -> str:
        host = "".join([["", "www.", "m.", "cdn."][rng.integers(4)], word(), word()[:4]])
        host += [".com", ".org", ".net", ".co.uk", ".de", ".io", ".info"][rng.integers(7)]
        path = "".join(f"/{_slug(rng, word)}" for _ in range(rng.integers(1, 4)))
        query = f"?{word()[:5]}={rng.integers(1, 10**6)}" if rng.random() < 0.4 else ""
        return f"{['http', 'https'][rng.integers(2)]}://{host}{path}{query}"

    return [one() for _ in range(n)]


def _slug(rng: np.random.Generator, word: Callable[[], str]) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return f"{rng.integers(2000, 2024)}/{rng.integers(1, 13):02d}"
    if kind == 1:
        return f"{int(rng.integers(1 << 40)):x}"
    return "-".join(word() for _ in range(rng.integers(1, 5))) + ["", ".html", ".php"][kind - 1]


def emoji(n: int, *, seed: int) -> list[str]:
    """Random pictures of Unicode's emoji blocks, one to six a piece."""
    blocks = ((0x1F300, 0x1F650), (0x1F680, 0x1F6D0), (0x1F900, 0x1FA00))
    known = [chr(c) for a, b in blocks for c in range(a, b) if unicodedata.category(chr(c)) == "So"]
    rng = generator(seed, "text noise", "emoji")
    return ["".join(rng.choice(known, rng.integers(1, 7))) for _ in range(n)]


def strays(lines: Sequence[str], n: int, *, seed: int) -> list[str]:
    """Random sentences of another text, four tokens or more each, not its headings.

    Published: C4. Here: WikiText, whose marks of tokenisation are taken back first, and sentences
    with words that it left out are not used: both would give the noise away.
    """
    text = "\n".join(line for line in map(untokenized, lines) if not line.startswith("="))
    found = sorted({text[a:b] for a, b in split_sentences(text).tolist()})
    found = [s for s in found if tokens(s) > 3 and "<unk>" not in s]
    if not found:
        raise DataError("there are no sentences to draw from")
    return _drawn(found, n, seed, "sentence")


def untokenized(line: str) -> str:
    """A line of WikiText as people write it: ``5 @.@ 2 , "`` → ``5.2,"``."""
    line = re.sub(r" @(.)@ ", r"\1", line.strip())
    line = re.sub(r" ([,.;:!?%)\]}]|'s\b|n't\b|'(?:re|ve|ll|d|m)\b)", r"\1", line)
    line = re.sub(r"([(\[{$£€]) ", r"\1", line)
    line = re.sub(r'" ([^"]*?) "', r'"\1"', line)
    return re.sub(r" ' ([^']*?) '", r" '\1'", line).replace("s ' ", "s' ")


def pieces(
    kind: TextFault,
    n: int,
    *,
    seed: int,
    strays_from: Sequence[str] = (),
    words: Sequence[str] = (),
) -> list[str]:
    """``n`` pieces of noise of that kind. ConfigError for another kind."""
    made: Mapping[str, Callable[[], list[str]]] = {
        "code": lambda: code(n, seed=seed),
        "url": lambda: urls(n, seed=seed, words=words),
        "emoji": lambda: emoji(n, seed=seed),
        "sentence": lambda: strays(strays_from, n, seed=seed),
    }
    if kind not in made:
        raise ConfigError(f"noise in text is one of {', '.join(get_args(TextFault))}, not {kind!r}")
    return made[kind]()


def _drawn(known: Sequence[str], n: int, seed: int, name: str) -> list[str]:
    rng = generator(seed, "text noise", name)
    return [known[i] for i in rng.integers(0, len(known), n).tolist()]
