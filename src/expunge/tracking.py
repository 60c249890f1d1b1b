"""Experiment trackers, through those of Accelerate: TensorBoard, MLflow, W&B, Trackio, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import ConfigError, did_you_mean
from expunge.records import RepairResult
from expunge.reporting.summary import summarise

PROJECT = "expunge"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse unknown trackers, and those whose package is not installed.

    Raises
    ------
    ConfigError
        With the name.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            fix = did_you_mean(name, LOGGER_TYPE_TO_CLASS)
            raise ConfigError(f"no tracker is called '{name}'", where="trackers", fix=fix)
        if name not in available:
            raise ConfigError(
                f"the package of the tracker '{name}' is not installed",
                where="trackers",
                fix=f"pip install {name.replace('_', '-')}",
            )


def log_result(result: RepairResult, names: Sequence[str], folder: Path | None) -> None:
    """Log the numbers and settings of a repair, in the main process.

    Parameters
    ----------
    result
        Of a repair.
    names
        Trackers of Accelerate.
    folder
        For the trackers that write files; None is the working directory.
    """
    if not names:
        return
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(names), project_dir=str(folder or Path.cwd()))
    accelerator.init_trackers(PROJECT, config=_flat(result.config))
    numbers = {k: v for k, v in _flat(summarise(result)).items() if isinstance(v, int | float)}
    accelerator.log(numbers, step=0)
    accelerator.end_training()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings as one level, ``tune/epochs``; lists become text and None is left out."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}/")
        elif isinstance(value, str | int | float | bool):
            found[name] = value
        elif value is not None:
            found[name] = str(value)[:250]
    return found
