"""Reading and writing arrays: NumPy's files, and safetensors files with their own digest."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge._core.arrays import Array
from expunge.errors import DataError, ExpungeError, RunError, did_you_mean
from expunge.storage.atomic_files import write_file
from expunge.storage.digests import canonical
from expunge.storage.json_files import parse_json
from expunge.storage.reading import reading

# No deflated stream becomes more than this many times as long.
_MAX_RATIO = 1032
_PLAIN_FIX = "write it with numpy.savez(path, x=…, y=…), texts as y.astype(str)"
_METADATA, _DIGEST = "metadata", "sha256"


def read_npz(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Read arrays of an ``.npz`` file; nothing is unpickled.

    Parameters
    ----------
    path
        The file.
    required, optional
        Names of arrays; optional ones may be absent.

    Raises
    ------
    DataError
        If the file is damaged, no ``.npz`` file, lacks an array, holds objects, or states another
        size than it has.
    """
    what = "not an .npz file of plain arrays"
    with (
        reading(path, what=what, fix=_PLAIN_FIX),
        path.open("rb") as stream,
        _open_archive(stream) as archive,
    ):
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        for name in required:
            if name not in entries:
                raise DataError(
                    f"no array is called '{name}'", where=str(path), fix=did_you_mean(name, entries)
                )
        return {
            name: _read_entry(archive, entries[name])
            for name in (*required, *optional)
            if name in entries
        }


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of an ``.npz`` file; see `read_npz`."""
    with (
        reading(path, what="not an .npz file of plain arrays", fix=_PLAIN_FIX),
        path.open("rb") as stream,
        _open_archive(stream) as archive,
    ):
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_npy(path: Path) -> Array:
    """Read the array of an ``.npy`` file; see `read_npz`."""
    with reading(path, what="not an .npy file of plain numbers"), path.open("rb") as stream:
        _check_size(stream, path.stat().st_size)
        stream.seek(0)
        return _check_text(npy.read_array(stream, allow_pickle=False))


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, and none in the memory of another: safetensors refuses
    tied ones.
    """
    found: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        start = own.untyped_storage().data_ptr()
        found[name] = own.clone() if start in used else own
        used.add(start)
    return found


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and plain values to one safetensors file, with a digest of both.

    Parameters
    ----------
    path
        The file; it appears in one rename.
    tensors
        By name, on any device.
    metadata
        Values that JSON can hold.

    Raises
    ------
    RunError
        If the file cannot be written.
    """
    state = storable(tensors)
    text = json.dumps(dict(metadata), default=list)
    header = {_METADATA: text, _DIGEST: _digest(state, text)}
    write_file(path, lambda file: save_file(state, file, metadata=header))


def read_tensors(
    path: Path, *, error: type[ExpungeError] = RunError, fix: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the values of a file that `save_tensors` wrote.

    Raises
    ------
    ExpungeError
        Of the class given: if the file is missing, damaged, of another program, or has changed.
    """
    with (
        reading(path, error, fix=fix, also=(SafetensorError,)),
        safe_open(path, framework="pt") as file,
    ):
        header = file.metadata() or {}
        if not {_METADATA, _DIGEST} <= {*header}:
            raise error("was written by another program or version", where=str(path), fix=fix)
        text = header[_METADATA]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = parse_json(text)
        has_changed = header[_DIGEST] != _digest(tensors, text)
    if has_changed or not isinstance(metadata, dict):
        raise error("has changed since it was written", where=str(path), fix=fix)
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    hashed = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _open_archive(stream: IO[bytes]) -> zipfile.ZipFile:
    if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
        raise ValueError("it is one array, expected an .npz file")
    return zipfile.ZipFile(stream)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed in a way that NumPy does not use")
    if entry.file_size > _MAX_RATIO * entry.compress_size + 1024:
        raise ValueError(
            f"it states {entry.file_size:,} bytes, which {entry.compress_size:,} "
            "compressed bytes cannot hold"
        )
    with archive.open(entry) as stream:
        _check_size(stream, entry.file_size)
    with archive.open(entry) as stream:
        return _check_text(npy.read_array(stream, allow_pickle=False))


def _check_size(stream: IO[bytes], available: int) -> None:
    """ValueError for Python objects, and if the header asks for more bytes than there are."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > available:
        raise ValueError(f"shape {list(shape)} of {dtype} in {available:,} bytes")


def _check_text(array: Array) -> Array:
    """ValueError for code points that no text has."""
    if array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if codes.max() > 0x10FFFF or ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise ValueError("text with characters that do not exist")
    return array
