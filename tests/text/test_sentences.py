from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.text.sentences import MAX_LENGTH, remove_sentences, split_sentences

# What texts are made of that splitters stumble over.
PIECES = st.sampled_from(
    [
        *(
            "Hello there. ",
            "e.g. this",
            "\n",
            "\r\n",
            " ",
            "\t",
            "...",
            "?! ",
            "U.S. ",
            "1. ",
            "• ",
        ),
        *("https://a.b/c?d=1 ", "def f(x): return x", "😀🎉 ", "你好。", "यह है। "),
        *("\u2028", "\ufeff", "\0", "«", "”"),
    ]
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=30).map("".join))


def split(text: str) -> list[str]:
    return [text[a:b] for a, b in split_sentences(text).tolist()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. No met J. K. Rowling in the U.S. on Jan. 3. They left.", 2),
        ("He said no. Then he sat. See No. 5.", ["He said no.", "Then he sat.", "See No. 5."]),
        ('"Really?" he asked. "Yes."', ['"Really?" he asked.', '"Yes."']),
        ("It cost $1.5bn, i.e. 3.2% more… But why", ["It cost $1.5bn, i.e. 3.2% more…", "But why"]),
        (
            "See this. https://x.org/a.b?c=1 He left.",
            ["See this.", "https://x.org/a.b?c=1", "He left."],
        ),
        ("Read https://x.org/a today. Then go.", ["Read https://x.org/a today.", "Then go."]),
        ("Sold. 😀😀 🎉 The man left. 😂", ["Sold.", "😀😀 🎉", "The man left.", "😂"]),
        ("def f(x):\n    return x + 1", ["def f(x):", "return x + 1"]),
        ("- one\n- two\n1. First thing. Then", ["- one", "- two", "1. First thing.", "Then"]),
        ("• one • two", ["• one", "• two"]),
        ("你好。我是。再见！", ["你好。", "我是。", "再见！"]),
        ("यह है। वह है।", ["यह है।", "वह है।"]),
        ("هل هذا؟ نعم.", ["هل هذا؟", "نعم."]),
        ("A headline without a stop\nThe text.", ["A headline without a stop", "The text."]),
        ("\ufeff  \n x \u00a0", ["x"]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
    found = split(text)
    assert found == expected if isinstance(expected, list) else len(found) == expected


def test_a_line_broken_at_the_margin_goes_on():
    wrapped = "This line is long enough to have met the margin and\ngoes on below. Then more."
    assert split(wrapped) == [wrapped[: wrapped.index(" Then")], "Then more."]


def test_text_without_punctuation_is_cut_at_white_space():
    found = split("no stop at all " * 300)
    assert len(found) > 5
    assert max(map(len, found)) <= MAX_LENGTH
    assert all(word in ("no", "stop", "at", "all") for part in found for word in part.split())


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_sentences_hold_all_that_is_visible_and_no_white_space_around(text):
    spans = split_sentences(text)
    assert (np.diff(spans.ravel()) >= 0).all()
    assert all(text[a:b] and text[a:b] == text[a:b].strip() for a, b in spans.tolist())
    outside = np.ones(len(text), dtype=bool)
    for a, b in spans.tolist():
        outside[a:b] = False
    assert (
        "".join(np.array(list(text), dtype=object)[outside])
        .strip("\ufeff \n\t")
        .replace("\ufeff", "")
        .strip()
        == ""
    )


@given(TEXTS, st.data())
@settings(max_examples=300, deadline=None)
def test_cleaning_keeps_every_kept_sentence_byte_for_byte(text, data):
    spans = split_sentences(text)
    removed = np.array(data.draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans))))
    removed = removed.astype(bool)
    cleaned = remove_sentences(text, spans, removed)
    if not removed.any():
        assert cleaned == text
        return
    gaps = {text[a:b] for a, b in zip([0, *spans[:, 1]], [*spans[:, 0], len(text)], strict=True)}
    at, last = 0, -1
    for number, ((a, b), gone) in enumerate(zip(spans.tolist(), removed.tolist(), strict=True)):
        if not gone:
            piece = text[a:b]
            # Between two kept pieces stands a gap of the original, nothing else.
            gap = next(g for g in sorted(gaps, key=len) if cleaned[at:].startswith(g + piece))
            if last == number - 1 and last >= 0:
                gap = text[spans[last, 1] : a]
            assert cleaned[at:].startswith(gap + piece)
            at, last = at + len(gap) + len(piece), number
    assert not cleaned[at:].replace("\ufeff", "").strip()


@pytest.mark.parametrize(
    ("text", "gone", "expected"),
    [
        ("A b. Noise. C d.", [0, 1, 0], "A b. C d."),
        ("A b.\n\nNoise.\nC d.\n", [0, 1, 0], "A b.\n\nC d.\n"),
        ("A b. Noise.\n\nC d.", [0, 1, 0], "A b.\n\nC d."),
        ("  Noise. A b.", [1, 0], "  A b."),
        ("A b. Noise.\n", [0, 1], "A b.\n"),
        ("Noise. More.", [1, 1], ""),
    ],
)
def test_paragraphs_stay_apart(text, gone, expected):
    assert remove_sentences(text, split_sentences(text), np.array(gone, dtype=bool)) == expected


@pytest.mark.parametrize(
    "sign",
    [" ", ".", "a ", "a.\n", "。", "😀", "x", "\n", "http://", "((", "\ufeff", "a" * 60 + "\n"],
)
def test_splitting_takes_time_in_proportion(sign):
    def seconds(n: int) -> float:
        text = sign * (n // len(sign))
        start = time.process_time()
        split_sentences(text)
        return time.process_time() - start

    seconds(1_000)
    assert seconds(200_000) < 12 * seconds(50_000) + 0.2
