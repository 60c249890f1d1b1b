"""Split text into sentences, prose or not. Pure.

There is no model and no word list but a few abbreviations. Noise is rarely a proper sentence. It
must not be joined with its neighbours, which would be removed with it.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

# A longer stretch without an end is split at white space, or anywhere if it has none.
MAX_LENGTH = 600
# A shorter line was not broken at the margin.
MIN_LINE_LENGTH = 40
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
_LINE_ENDS = "\n\r\f\u0085\u2028\u2029"
# Where a sentence may end: at white space, or at a full stop of scripts that write none.
_CANDIDATE = re.compile(rf"(?<!\s)\s++|(?P<wide>[。！？｡]++[{re.escape(_CLOSING)}]*+)\s*+")
_WORD = re.compile(r"[^\s\"'“‘«(\[{]*$")
_ITEM = re.compile(rf"(?:[-*+{_BULLETS}>#|]|\(?\d{{1,3}}[.)]|\(?[A-Za-z][.)])\s")
_NUMBER = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})\.$")
_LINK = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.-]{1,15}://|www\.)\S+")
_LINKS = re.compile(rf"(?:{_LINK.pattern}\s+)+")


def split_sentences(text: str) -> np.ndarray:
    """Split a text into sentences.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    np.ndarray
        ``int64[s, 2]``: start and end of every sentence, as offsets into the text. Only white space
        is between sentences, and none at their ends. A text without a visible character has none.

    Notes
    -----
    A sentence ends

    - at closing punctuation before white space, unless the next word is in lower case, or the dot
      belongs to an abbreviation, an initial or the number of an item;
    - at the full stop of scripts without white space;
    - at the end of a line, unless a long line without closing punctuation continues in lower case;
    - before a bullet.

    Links, and runs of symbols such as emoji, at the start of a sentence are sentences of their own.
    A stretch of more than 600 characters is split. Cost: linear.

    Examples
    --------
    >>> split_sentences("Dr. No came. https://x.org/?a=1 He left!").tolist()
    [[0, 12], [13, 31], [32, 40]]
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        if _is_end(text, start, match):
            spans += _split_long(text, start, match.end())
            start = match.end()
    spans += _split_long(text, start, len(text))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def remove_sentences(text: str, spans: np.ndarray, removed: np.ndarray) -> str:
    """Remove sentences from a text; the others keep every byte.

    Of the gaps around removed sentences, the one with the most line ends is kept (the first of
    equals), so that paragraphs stay separate. Text before the first sentence and after the last one
    is kept.

    Parameters
    ----------
    text, spans
        A text and its sentences, see `split_sentences`.
    removed
        ``bool[s]``: the sentences to remove.

    Returns
    -------
    str
        The rest; an empty text if all sentences are removed.

    Examples
    --------
    >>> spans = np.array([[0, 4], [5, 9], [10, 16]])
    >>> remove_sentences("One. Two. Three.", spans, np.array([False, True, False]))
    'One. Three.'
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
            pieces += [max(between, key=_count_line_ends) if pieces else between[0]]
            pieces += [text[start:end]]
            between = [gap]
    return "".join([*pieces, between[-1]]) if pieces else ""


def _count_line_ends(gap: str) -> int:
    return sum(gap.replace("\r\n", "\n").count(sign) for sign in _LINE_ENDS)


def _is_end(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the sentence that starts at ``start`` ends at this match."""
    before = text[max(start, match.start() - MAX_LENGTH) : match.start()]
    after = text[match.end() : match.end() + 64]
    if match["wide"] is not None or not before or not after:
        return True
    if lines := _count_line_ends(match[0]):
        return lines > 1 or not _continues(before, match[0], after)
    if after[0] in _BULLETS and after[1:2].isspace():
        return True
    closed = before.rstrip(_CLOSING)
    if closed[-1:] not in _TERMINATORS or not closed:
        return False
    if after.lstrip(_OPENING)[:1].islower() and not _LINK.match(after):
        return False
    if closed[-1] != "." or closed[-2:] == "..":
        return True
    return not _is_abbreviation(closed, after[0], first=match.start() - start < 8)


def _is_abbreviation(before: str, following: str, *, first: bool) -> bool:
    """Whether the dot at the end belongs to the word; ``first``: the sentence starts here."""
    if first and _NUMBER.fullmatch(before):
        return True
    word = (_WORD.search(before) or [""])[0].removesuffix(".")
    initials = all(len(part) == 1 and part.isupper() for part in word.split("."))
    counted = following.isdigit() and word.lower() in BEFORE_NUMBERS
    return initials or counted or word.lower() in ABBREVIATIONS


def _continues(before: str, gap: str, after: str) -> bool:
    """Whether a line was broken only at the margin."""
    last = re.split(rf"[{_LINE_ENDS}]", before)[-1]
    return (
        len(last) >= MIN_LINE_LENGTH
        and gap[-1] in _LINE_ENDS
        and after[0].islower()
        and last[-1] not in ".!?…:;{}()[]=<>,\\|"
        and not _LINK.match(after)
        and not _ITEM.match(after)
    )


def _split_long(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Trim a sentence; split off links, symbols and stretches that are too long."""
    spans = []
    start, end = _trimmed(text, start, end)
    while start < end:
        stop = _first_end(text, start, end)
        spans.append(_trimmed(text, start, stop))
        start, end = _trimmed(text, stop, end)
    return spans


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and _is_blank(text[start]):
        start += 1
    while start < end and _is_blank(text[end - 1]):
        end -= 1
    return start, end


def _is_blank(sign: str) -> bool:
    """White space, or the byte order mark at the start of some files."""
    return sign.isspace() or sign == "\ufeff"


def _first_end(text: str, start: int, end: int) -> int:
    """The end of the first part of a sentence."""
    near = min(end, start + MAX_LENGTH)
    links = _LINKS.match(text, start, near)
    if links and text[links.end()].isupper():
        return links.end()
    at = start
    while at < near and (text[at].isspace() or _is_symbol(text[at])):
        at += 1
    if start < at < near and text[at - 1].isspace() and text[at].isupper():
        return at
    if end - start <= MAX_LENGTH:
        return end
    space = text.rfind(" ", start + MAX_LENGTH // 2, start + MAX_LENGTH)
    return space if space > 0 else start + MAX_LENGTH


def _is_symbol(sign: str) -> bool:
    """Emoji and other pictographs, with their modifiers."""
    return not sign.isascii() and unicodedata.category(sign) in ("So", "Sk", "Mn", "Cf", "Me")
