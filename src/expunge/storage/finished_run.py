"""The last files of a run, which ``record.json`` completes: it holds the SHA-256 of all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import RunError
from expunge.storage.digests import require_unchanged
from expunge.storage.json_files import read_json, read_sealed, seal
from expunge.storage.reading import is_file, reading

if TYPE_CHECKING:
    from expunge.storage.run_folder import Run

RECORD, RESULT, EVALUATIONS = "record.json", "result.json", "evaluation.parquet"
# The folder may be there, but looked for from another working directory.
FINISH = "let the repair end first, and start where it was started, or name its run folder"
FIX = "run the repair again: it resumes from its stages"


def write_record(run: Run, facts: Mapping[str, Any]) -> None:
    """Write ``record.json``, after all other files of the run."""
    sealed = seal({**facts, "files": run.files})
    run.write(RECORD, json.dumps(sealed, indent=2) + "\n")


def read_record(folder: Path, *names: str) -> dict[str, Any]:
    """Read ``record.json`` of a finished run, and check that files of it have not changed.

    Parameters
    ----------
    folder
        The run folder.
    names
        The files to check.

    Raises
    ------
    RunError
        If the folder holds no finished run, or one of the files is missing or has changed.
    """
    if not is_file(folder / RECORD):
        raise RunError("holds no finished run", where=str(folder), fix=FINISH)
    record = read_sealed(folder / RECORD, fix=FIX)
    with reading(folder, RunError, fix=FIX):
        files = {name: str(record["files"][name]) for name in names}
    require_unchanged(folder, files, fix=FIX)
    return record


def read_result(folder: Path) -> dict[str, Any]:
    """Read ``result.json`` of a finished run; RunError as `read_record`.

    ``run`` is where the folder is now.
    """
    read_record(folder, RESULT)
    return {**read_json(folder / RESULT, fix=FIX), "run": str(folder)}
