"""What a stage leaves in its folder: tables (Parquet), tensors (safetensors) and ``stage.json``.

``stage.json`` holds the SHA-256 of every other file and of itself. They are compared before
anything is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import RunError, format_ids
from expunge.storage.array_files import storable
from expunge.storage.atomic_files import write_file
from expunge.storage.digests import file_digest, require_unchanged
from expunge.storage.json_files import read_sealed, seal
from expunge.storage.parquet_files import open_parquet
from expunge.storage.reading import reading

NOTE, _TENSORS = "stage.json", "tensors.safetensors"
FIX = "delete this folder; the stage is then done again"


@dataclass(frozen=True)
class Artefact:
    """What a stage leaves behind: plain facts (JSON), tables and tensors.

    folder: where it was read; empty if it was just computed.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    folder: str = ""


def write_artefact(folder: Path, artefact: Artefact, note: Mapping[str, Any]) -> None:
    """Write an artefact into an empty folder; further facts go into ``stage.json``."""
    for name, table in artefact.tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    if artefact.tensors:
        tensors = storable(artefact.tensors)
        write_file(folder / _TENSORS, lambda file: save_file(tensors, file))
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    facts = seal({**note, "metadata": artefact.metadata, "files": files})
    (folder / NOTE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_note(folder: Path) -> dict[str, Any]:
    """Read ``stage.json`` of a finished stage: its key, seconds, facts and the files' digests.

    Raises
    ------
    RunError
        If it is missing, damaged or has changed.
    """
    note = read_sealed(folder / NOTE, fix=FIX)
    absent = {"key", "seconds", "metadata", "files"} - {*note}
    if absent:
        raise RunError(f"lacks {format_ids(absent)}", where=str(folder / NOTE), fix=FIX)
    return note


def read_artefact(folder: Path) -> Artefact:
    """Read what a finished stage left in its folder.

    Raises
    ------
    RunError
        If a file is missing, damaged or has changed since it was written.
    """
    note = read_note(folder)
    with reading(folder, RunError, fix=FIX):
        require_unchanged(folder, note["files"], fix=FIX)
    tables, tensors = {}, {}
    for name in note["files"]:
        if name == _TENSORS:
            with (
                reading(folder, RunError, fix=FIX, also=(SafetensorError,)),
                safe_open(folder / name, framework="pt") as file,
            ):
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            tables[name.removesuffix(".parquet")] = read_table(folder / name)
    return Artefact(note["metadata"], tables, tensors, str(folder))


def read_table(file: Path) -> pa.Table:
    """Read a Parquet file of a run; RunError if it is missing or damaged."""
    with open_parquet(file, RunError, what="cannot be read", fix=FIX) as opened:
        return opened.read()
