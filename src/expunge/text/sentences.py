"""Where sentences begin and end, in prose as in what is not prose. Pure.

No model and no word list of a language but a few abbreviations: what does not belong in a text is
rarely a sentence, and must not pull its neighbours along when it is removed.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

# A longer stretch without an end is cut at white space, or anywhere if it has none.
LONGEST = 600
# A line that is shorter than this was not broken because the margin came.
MARGIN = 40
_TITLES = "mr mrs ms dr prof rev hon messrs gen col capt lt sgt maj cmdr adm gov sen rep"
_SHORT = "e.g i.e viz cf vs v approx dept univ eds vols ca al ltd inc corp"
ABBREVIATIONS = frozenset(f"{_TITLES} {_SHORT}".split())
# Words of their own, and abbreviations only before a number.
_COUNTED = "no nos vol fig figs p pp ch sec eq art jan feb mar apr jun jul aug sep sept oct nov dec"
BEFORE_NUMBERS = frozenset(_COUNTED.split())

_CLOSING = "\"'”’»)]}›」』】"
_OPENING = "\"'“‘«([{‹「『【¿¡"
_TERMINATORS = ".!?…؟۔।॥"
_BULLETS = "•●▪‣◦·"
_LINES = "\n\r\f\u0085\u2028\u2029"
# Where a sentence may end: at white space, or at a full stop of scripts that write none.
_CANDIDATE = re.compile(rf"(?<!\s)\s++|(?P<wide>[。！？｡]++[{re.escape(_CLOSING)}]*+)\s*+")
_WORD = re.compile(r"[^\s\"'“‘«(\[{]*$")
_ITEM = re.compile(rf"(?:[-*+{_BULLETS}>#|]|\(?\d{{1,3}}[.)]|\(?[A-Za-z][.)])\s")
_NUMBER = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})\.$")
_LINK = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.-]{1,15}://|www\.)\S+")
_LINKS = re.compile(rf"(?:{_LINK.pattern}\s+)+")


def sentences(text: str) -> np.ndarray:
    """``int64[s, 2]``: start and end of every sentence, as offsets into the text.

    A sentence ends at closing punctuation before white space, unless the next word is in lower
    case, or the dot belongs to an abbreviation, an initial or the number of an item; in scripts
    that write no white space, at their own full stop; at the end of a line, unless a long line
    without closing punctuation goes on in lower case; before a bullet. Links and runs of symbols
    such as emoji that no sentence leads to stand alone. Nothing but white space lies between
    sentences, and none at their ends; a stretch of more than `LONGEST` characters is cut.

    Text without any visible character has no sentences. Cost: linear.

    >>> sentences("Dr. No came. https://x.org/?a=1 He left!").tolist()
    [[0, 12], [13, 31], [32, 40]]
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        if _ends(text, start, match):
            spans += _cut(text, start, match.end())
            start = match.end()
    spans += _cut(text, start, len(text))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def kept_text(text: str, spans: np.ndarray, removed: np.ndarray) -> str:
    """The text without some of its sentences, every kept one byte for byte as it was.

    spans: as of `sentences`. removed: ``bool[s]``. Of the gaps around what is removed one stays,
    the one with the most ends of lines, so that paragraphs stay apart; the first of equals. What
    stands before the first sentence and behind the last one stays. All removed: an empty text.
    """
    if not removed.any():
        return text
    ends = np.r_[0, spans[:, 1]]
    starts = np.r_[spans[:, 0], len(text)]
    gaps = [text[a:b] for a, b in zip(ends.tolist(), starts.tolist(), strict=True)]
    pieces: list[str] = []
    between = [gaps[0]]
    for (start, end), gone, gap in zip(spans.tolist(), removed.tolist(), gaps[1:], strict=True):
        if gone:
            between.append(gap)
        else:
            pieces += [max(between, key=_lines) if pieces else between[0]]
            pieces += [text[start:end]]
            between = [gap]
    return "".join([*pieces, between[-1]]) if pieces else ""


def _lines(gap: str) -> int:
    return sum(gap.replace("\r\n", "\n").count(sign) for sign in _LINES)


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the sentence that began at ``start`` ends at this match."""
    before = text[max(start, match.start() - LONGEST) : match.start()]
    after = text[match.end() : match.end() + 64]
    if match["wide"] is not None or not before or not after:
        return True
    if lines := _lines(match[0]):
        return lines > 1 or not _goes_on(before, match[0], after)
    if after[0] in _BULLETS and after[1:2].isspace():
        return True
    closed = before.rstrip(_CLOSING)
    if closed[-1:] not in _TERMINATORS or not closed:
        return False
    if after.lstrip(_OPENING)[:1].islower() and not _LINK.match(after):
        return False
    if closed[-1] != "." or closed[-2:] == "..":
        return True
    return not _abbreviated(closed, after[0], first=match.start() - start < 8)


def _abbreviated(before: str, following: str, *, first: bool) -> bool:
    """Whether the dot at the end belongs to the word; first: nothing stands before."""
    if first and _NUMBER.fullmatch(before):
        return True
    word = (_WORD.search(before) or [""])[0].removesuffix(".")
    initials = all(len(part) == 1 and part.isupper() for part in word.split("."))
    counted = following.isdigit() and word.lower() in BEFORE_NUMBERS
    return initials or counted or word.lower() in ABBREVIATIONS


def _goes_on(before: str, gap: str, after: str) -> bool:
    """Whether a line was broken only because the margin came."""
    last = re.split(rf"[{_LINES}]", before)[-1]
    return (
        len(last) >= MARGIN
        and gap[-1] in _LINES
        and after[0].islower()
        and last[-1] not in ".!?…:;{}()[]=<>,\\|"
        and not _LINK.match(after)
        and not _ITEM.match(after)
    )


def _cut(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A sentence without the white space around it; links, symbols and overlong stretches apart."""
    spans = []
    start, end = _trimmed(text, start, end)
    while start < end:
        stop = _first(text, start, end)
        spans.append(_trimmed(text, start, stop))
        start, end = _trimmed(text, stop, end)
    return spans


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and _blank(text[start]):
        start += 1
    while start < end and _blank(text[end - 1]):
        end -= 1
    return start, end


def _blank(sign: str) -> bool:
    """White space, or the mark that some files of text begin with."""
    return sign.isspace() or sign == "\ufeff"


def _first(text: str, start: int, end: int) -> int:
    """Where the first part of a sentence ends."""
    near = min(end, start + LONGEST)
    links = _LINKS.match(text, start, near)
    if links and text[links.end()].isupper():
        return links.end()
    at = start
    while at < near and (text[at].isspace() or _symbol(text[at])):
        at += 1
    if start < at < near and text[at - 1].isspace() and text[at].isupper():
        return at
    if end - start <= LONGEST:
        return end
    space = text.rfind(" ", start + LONGEST // 2, start + LONGEST)
    return space if space > 0 else start + LONGEST


def _symbol(sign: str) -> bool:
    """Emoji and other pictures, with what joins and colours them."""
    return not sign.isascii() and unicodedata.category(sign) in ("So", "Sk", "Mn", "Cf", "Me")
