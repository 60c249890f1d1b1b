"""The exceptions of expunge. Every message names what is wrong, where, and the fix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

# Characters that control a terminal or reorder what it shows, and surrogates, which no file holds.
_UNPRINTABLE = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for codes in (
        *(range(9), range(11, 32), range(127, 160)),
        *(range(0x2028, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000)),
    )
    for code in codes
}


def printable(text: str) -> str:
    """Escape the characters of a text that control a terminal; lines and tabs stay.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    return text.translate(_UNPRINTABLE)


class ExpungeError(Exception):
    """An error that the user can fix.

    Parameters
    ----------
    what
        What was expected and what came instead.
    where
        The file, stage, layer or sample ids concerned.
    fix
        What the user can do about it.

    Attributes
    ----------
    problems : tuple of str
        The message, or one for every problem if the error reports several.
    """

    problems: tuple[str, ...]

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = map(printable, (what, where, fix))
        lines = [f"{self.where}: {self.what}" if where else self.what]
        if fix:
            lines.append(f"  fix: {self.fix}")
        super().__init__("\n".join(lines))
        self.problems = (str(self),)


class ConfigError(ExpungeError):
    """A setting, a name or a spec file is wrong."""


class DataError(ExpungeError):
    """The data cannot be read or cannot be right."""


class ModelError(ExpungeError):
    """The model, its weights or its output cannot be used."""


class PartitionError(ExpungeError):
    """The partition leaves nothing to work with."""


class PruneError(ExpungeError):
    """No unit can be pruned as requested."""


class RunError(ExpungeError):
    """The run folder belongs to another run, is in use or cannot be written."""


def extra_required(package: str, extra: str) -> ConfigError:
    """The error for an optional package that is not installed."""
    return ConfigError(
        f"the package '{package}' is not installed", fix=f"pip install 'expunge[{extra}]'"
    )


# What code of the user may raise: models, transforms and views.
USER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# Former names of settings, values and plug-ins, and the names that they have now.
RENAMED = {
    "attributed_neighbours": "attribution_knn",
    "cap": "max_layer_fraction",
    "chunk": "chunk_size",
    "class_distance": "lda_margin",
    "controls": "baselines",
    "data": "targets",
    "enough": "min_flag_change",
    "everything": "all",
    "fresh": "overwrite",
    "given_probs": "external_margin",
    "kept": "filter",
    "last": "last_n_layers",
    "layer": "attribution_layer",
    "least": "min_flagged_fraction",
    "memorised": "overfit",
    "most": "max_samples",
    "neighbour_disagreement": "knn_disagreement",
    "nothing": "no-op",
    "probs": "external_probs",
    "ranked": "top-effect",
    "rate": "sample_rate",
    "retrain-kept": "retrain-filtered",
    "retrain-long": "retrain-filtered-3x",
    "rounds": "iterative",
    "rows": "max_rows",
    "search": "neighbour_search",
    "shared_doubt": "local_uncertainty",
    "smallest-weights": "magnitude",
    "skip": "skip_rows",
    "soft": "reweight",
    "stage_attribution": "layerwise_attribution",
    "stages": "feature_layers",
    "sure": "min_relabel_confidence",
    "tune-everything": "finetune-all-labels",
    "view_loss": "augmented_loss",
    "view_margin": "augmented_margin",
}


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped name: the closest match, or the list of what there is."""
    known = sorted(choices)
    if RENAMED.get(name) in known:
        return f"it is now called '{RENAMED[name]}'"
    # A part of a longer name is as good a hint: 'rate' for 'sample_rate'.
    containing = [choice for choice in known if name in choice.split("_")]
    same = [choice for choice in known if choice.casefold() == name.casefold()]
    match = same[:1] or get_close_matches(name, known, n=1, cutoff=0.6) or containing[:1]
    if match:
        return f"did you mean '{match[0]}'?"
    return f"choose one of: {format_ids(known, 20)}" if known else "there are none"


def format_ids(values: Iterable[object], limit: int = 5) -> str:
    """The first few of many values, for a message."""
    items = list(values)
    shown = ", ".join(str(v).replace("\n", "\\n") for v in items[:limit])
    return shown if len(items) <= limit else f"{shown} … ({len(items)} in all)"


def type_with_article(value: object) -> str:
    """The type of a value, for a sentence.

    >>> type_with_article(3), type_with_article("3")
    ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' or name == 'ndarray' else 'a'} {name}"


def group_by_reason(what: str, reasons: Mapping[Any, str], limit: int = 8) -> list[str]:
    """Lines that name what is wrong with which ids, in the order in which the reasons come.

    >>> group_by_reason("clips", {3: "are silent", 5: "are silent"})
    ['clips that are silent: ids 3, 5']
    """
    groups: dict[str, list[Any]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    lines = [f"{what} that {reason}: ids {format_ids(names)}" for reason, names in groups.items()]
    if len(lines) > limit:
        lines = [*lines[:limit], f"… {len(lines) - limit} more kinds of problem"]
    return lines


def raise_all(kind: type[ExpungeError], problems: list[str], *, where: str) -> None:
    """Raise all problems in one error of the given kind; do nothing if there are none."""
    if len(problems) == 1:
        raise kind(problems[0], where=where)
    if problems:
        listed = "\n".join(f"  {i}. {p}" for i, p in enumerate(problems, 1))
        error = kind(f"{len(problems)} problems\n{listed}", where=where)
        error.problems = tuple(str(kind(p, where=where)) for p in problems)
        raise error


def check_range(
    error: type[ExpungeError], values: Mapping[str, tuple[float | None, str]], *, where: str = ""
) -> None:
    """Raise one error that names every value outside its interval.

    Parameters
    ----------
    error
        The class of error to raise.
    values
        ``{name: (value, interval)}``. The interval is written as in mathematics: ``"[0, 1)"``
        includes 0 and excludes 1; ``"[1, inf)"`` has no upper limit. None is not checked.
    where
        What the error is about.

    Raises
    ------
    ExpungeError
        Of the class given, if a value lies outside its interval or is NaN.

    Examples
    --------
    >>> check_range(ConfigError, {"views": (3, "[0, inf)"), "fdr": (None, "(0, 1)")})
    >>> check_range(ConfigError, {"views": (-1, "[0, inf)"), "threshold": (2, "[0, 1]")})
    Traceback (most recent call last):
    expunge.errors.ConfigError: 2 problems
      1. views must be 0 or more, not -1
      2. threshold must lie in [0, 1], not 2
    """
    raise_all(error, range_problems(values), where=where)


def range_problems(values: Mapping[str, tuple[float | None, str]]) -> list[str]:
    """The problems that `check_range` raises, to raise them together with others."""
    return [
        f"{name} must {_demand(interval)}, not {value}"
        for name, (value, interval) in values.items()
        if value is not None and not _inside(value, interval)
    ]


def _limits(interval: str) -> tuple[str, str]:
    low, high = interval[1:-1].split(",")
    return low.strip(), high.strip()


def _inside(value: float, interval: str) -> bool:
    low, high = (float(limit) for limit in _limits(interval))
    above = value > low or (interval[0] == "[" and value == low)
    below = value < high or (interval[-1] == "]" and value == high)
    return above and below


def _demand(interval: str) -> str:
    low, high = _limits(interval)
    if not math.isinf(float(high)):
        return f"lie in {interval}"
    return f"be {low} or more" if interval[0] == "[" else f"be above {low} and finite"
