"""Tar files in the layout of WebDataset: members ``key.ext``, one key a sample.

Nothing is unpacked: the members are found once and then read by their place in the file.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from expunge.data.encoded import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Encoded
from expunge.data.labels import as_column, parse_integers
from expunge.data.rows import Rows
from expunge.data.shards import find_shards
from expunge.data.texts import Texts
from expunge.errors import DataError, format_ids
from expunge.storage.digest_cache import file_digests
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading

if TYPE_CHECKING:
    from expunge.data.data_config import DataConfig

_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
# Labels and texts are read into memory; a larger member is none.
_MAX_CELL = 1 << 24
_JSON = "json"
# Members of a sample that hold its label, in the order in which they are looked for.
_LABEL_MEMBERS = ("cls", _JSON, "txt")


@dataclass(frozen=True)
class Span:
    """The place of a member: its file, the position of its first byte, and its size."""

    path: str
    offset: int
    size: int

    def __len__(self) -> int:
        return 1

    def read(self, position: int) -> bytes | None:
        if self.size < 0:
            return None
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError("the archive ends within it")
        return data

    def locate(self, position: int) -> Encoded:
        return self

    def content(self) -> str:
        return hashlib.sha256(self.read(0) or b"").hexdigest()


class EncodedMembers:
    """Images or clips that are members of tar files."""

    def __init__(self, files: Sequence[Path], spans: np.ndarray, kind: str) -> None:
        self._files, self._spans, self._kind = list(map(str, files)), spans, kind

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, position: int) -> bytes | None:
        return self.locate(position).read(0)

    def locate(self, position: int) -> Encoded:
        file, offset, size = self._spans[position].tolist()
        return Span(self._files[file], offset, size)

    def content(self) -> str:
        text = "".join(file_digests(self._files)) + self._kind
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class _Index:
    """What is found in the archives: keys, the spans of the inputs, and the cells that are read."""

    keys: list[str] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    cells: dict[str, list[bytes | None]] = field(default_factory=dict)


def webdataset_rows(path: Path, config: DataConfig) -> Rows:
    """Read tar files whose members are ``key.jpg``, ``key.cls``, ``key.json`` and so on.

    The ids are the keys. ``input`` names the extensions of the inputs (``"jpg;png"``); without it
    all images or clips. ``label`` names an extension (``cls`` or ``txt``) or a key of ``key.json``.
    With a tokenizer the input is a text, ``key.txt`` by default. Other members are not read.

    Raises
    ------
    DataError
        If an archive is damaged, compressed or incomplete, a name leads outside, a member is a link
        or a device, a sample has no label, or two members have one name.
    """
    files = find_shards(path, ".tar", config.split)
    wanted = _choose_members(files, config)
    index = _Index(cells={name: [] for name in wanted.cells})
    for number, file in enumerate(files):
        _read_archive(file, number, wanted, index)
    ids = _unique_ids(index, files)
    labels = np.zeros(len(ids), dtype=np.int64)
    if wanted.label:
        labels = _column(index, wanted.label, config.label, ids, str(path))
    if config.id is not None:
        ids = _column(index, _JSON, config.id, ids, str(path))
    inputs: Encoded | Texts
    if config.tokenizer:
        inputs = Texts(_texts(index, wanted.inputs[0], ids, str(path)), None)
    else:
        inputs = EncodedMembers(files, np.array(index.spans, np.int64), ";".join(wanted.inputs))
    return Rows(
        ids=ids,
        labels=labels,
        inputs=inputs,
        has_explicit_ids=True,
        is_audio=f".{wanted.inputs[0]}" in AUDIO_SUFFIXES,
    )


class _Wanted(NamedTuple):
    """The extensions of the inputs, of the label (empty: none is read), and of all cells."""

    inputs: tuple[str, ...]
    label: str
    cells: tuple[str, ...]


def _choose_members(files: Sequence[Path], config: DataConfig) -> _Wanted:
    """Decide by the first sample which members are read."""
    found = _first_sample(files)
    known = [e for e in found if f".{e}" in (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES)]
    given = tuple(e.lower().lstrip(".") for e in config.input.split(";") if e)
    if config.tokenizer:
        inputs = given if set(given) & set(found) else ("txt",)
    elif set(given) & set(found):
        inputs = given
    else:
        suffixes = AUDIO_SUFFIXES if known and f".{known[0]}" in AUDIO_SUFFIXES else IMAGE_SUFFIXES
        inputs = tuple(s.lstrip(".") for s in suffixes)
    if not set(inputs) & set(found):
        raise DataError(
            f"the first sample has the members {format_ids(found)}, none of which is an image or a "
            "clip",
            where=str(files[0]),
            fix='name the extension of the inputs: input = "jpg"; for texts, set tokenizer',
        )
    label = ""
    if config.labels is None:
        label = config.label if config.label in found else ""
        label = label or next((e for e in _LABEL_MEMBERS if e in found and e not in inputs), "")
        if not label:
            raise DataError(
                f"the first sample has the members {format_ids(found)}, none of which is a label",
                where=str(files[0]),
                fix=f"name the extension of the label: expected {', '.join(_LABEL_MEMBERS)}",
            )
    cells = [label] if label else []
    cells += [inputs[0]] if config.tokenizer else []
    cells += [_JSON] if config.id is not None else []
    return _Wanted(inputs, label, tuple(dict.fromkeys(cells)))


def _first_sample(files: Sequence[Path]) -> list[str]:
    """The extensions of the members of the first sample."""
    for file in files:
        found: dict[str, list[str]] = {}
        for key, extension, _ in _members(file):
            if found and key not in found:
                break
            found.setdefault(key, []).append(extension)
        if found:
            return next(iter(found.values()))
    raise DataError("no samples: no member of the archive is called key.ext", where=str(files[0]))


def _read_archive(file: Path, number: int, wanted: _Wanted, index: _Index) -> None:
    """Add the samples of an archive to the index."""
    rows: dict[str, int] = {}
    seen: set[tuple[int, str]] = set()
    with reading(file), file.open("rb") as data:
        for key, extension, member in _members(file):
            if key not in rows:
                rows[key] = len(index.keys)
                index.keys.append(key)
                index.files.append(number)
                index.spans.append((number, 0, -1))
                for cell in index.cells.values():
                    cell.append(None)
            row = rows[key]
            if (row, extension) in seen:
                raise _repeated(f"{key}.{extension}", file)
            seen.add((row, extension))
            if extension in wanted.inputs:
                if index.spans[row][2] >= 0:
                    raise _repeated(f"{key}.({'|'.join(wanted.inputs)})", file)
                index.spans[row] = (number, member.offset_data, member.size)
            if extension in index.cells:
                data.seek(member.offset_data)
                index.cells[extension][row] = data.read(min(member.size, _MAX_CELL))


def _repeated(name: str, file: Path) -> DataError:
    return DataError(
        f"two members of one sample: {name}",
        where=str(file),
        fix="write each sample once; input names the extension if a sample has several images",
    )


def _members(file: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """The members called ``key.ext``, in order: key, extension in lower case, and place."""
    fix = "write or download this file again; unpack .tar.gz to .tar"
    with (
        reading(file, what="not a tar file, or a damaged one", fix=fix, also=(tarfile.TarError,)),
        tarfile.open(file, "r:") as archive,
    ):
        end = 0
        while (member := archive.next()) is not None:
            if member.size < 0 or archive.offset <= end:  # hostile sizes would lead back
                raise DataError(f"damaged at byte {end}", where=str(file), fix=fix)
            end = archive.offset
            archive.members = []  # type: ignore[attr-defined]  # they would stay in memory
            _check_member(member, file)
            named = _KEY.fullmatch(member.name)
            if member.isfile() and named and not _is_hidden(member.name):
                yield named[1], named[2].lower(), member
        _check_end(archive, file, fix)


def _check_member(member: tarfile.TarInfo, file: Path) -> None:
    """Refuse what no data set holds: names that lead outside, links, devices."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise DataError(
            f"a name that leads outside the archive: {member.name[:80]!r}",
            where=str(file),
            fix="do not use this file; write names relative to the archive, without '..'",
        )
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise DataError(
            f"a member that is no plain file: {member.name[:80]!r}",
            where=str(file),
            fix="write the files themselves instead of links, devices or sparse files",
        )


def _check_end(archive: tarfile.TarFile, file: Path, fix: str) -> None:
    """A damaged header ends the reading without an error: after the last one, zeros must follow."""
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise DataError(f"damaged at byte {archive.offset}", where=str(file), fix=fix)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _unique_ids(index: _Index, files: Sequence[Path]) -> np.ndarray:
    """The keys; with the name of the archive, if two archives have the same keys."""
    if len(set(index.keys)) == len(index.keys):
        return np.array(index.keys)
    pairs = zip(index.files, index.keys, strict=True)
    return np.array([f"{files[number].stem}/{key}" for number, key in pairs])


def _column(index: _Index, member: str, name: str, ids: np.ndarray, where: str) -> np.ndarray:
    """The values of a member, or of a key of the JSON member, as integers or strings."""
    values: list[Any] = [None if v is None else _text(v) for v in index.cells[member]]
    if member == _JSON:
        values = [None if v is None else _json_value(v, name) for v in values]
    else:
        values = [v.strip() if v is not None and v.strip() else None for v in values]
    what = f"'{name}' of {_JSON}" if member == _JSON else f"the member {member}"
    column = as_column(values, ids, what=what, where=where)
    return np.array(parse_integers(column.tolist())) if column.dtype.kind == "U" else column


def _json_value(text: str, name: str) -> Any:
    try:
        found = parse_json(text)
    except ValueError:
        return None
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str | int | float) else None


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _texts(index: _Index, member: str, ids: np.ndarray, where: str) -> list[str]:
    found = index.cells[member]
    missing = [i for i, value in enumerate(found) if value is None]
    if missing:
        raise DataError(
            f"samples without a member {member}: ids {format_ids(ids[missing])}", where=where
        )
    return [_text(value) for value in found if value is not None]
