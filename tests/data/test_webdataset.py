"""Tar files in the layout of WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.data import DataConfig, LazyInputs, Samples, images, read
from expunge.errors import DataError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples_of(keys: range, **more: bytes) -> dict[str, bytes]:
    """Samples ``key.png``, ``key.cls`` and others."""
    found = {}
    for i in keys:
        found |= {f"a/k{i}.png": png(i), f"a/k{i}.cls": str(i % 2).encode()}
        found |= {f"a/k{i}.{extension}": data for extension, data in more.items()}
    return found


def here(path: Path | str, **settings: Any) -> Samples:
    return read(DataConfig(str(path), **settings), folder=Path("/nowhere"))


@pytest.mark.parametrize("path", ["", "train-*.tar", "train-{00..01}.tar"])
def test_archives_are_read_as_one_set(path: str, tmp_path: Path) -> None:
    archive(tmp_path / "train-00.tar", samples_of(range(3), txt=b"x"))
    archive(tmp_path / "train-01.tar", samples_of(range(3, 6)))
    samples = here(tmp_path / path)
    assert samples.ids.tolist() == [f"a/k{i}" for i in range(6)]
    assert samples.labels.tolist() == [0, 1] * 3
    assert samples.batch(np.arange(6))[:, 0, 0, 0].mul(255).round().tolist() == list(range(6))
    assert samples.has_explicit_ids


def test_labels_come_from_the_member_or_key_that_is_named(tmp_path: Path) -> None:
    members = {}
    for i, name in enumerate(("cat", "dog", "cat")):
        about = json.dumps({"label": i % 2, "species": name, "n": f"id{i}"})
        members |= {f"{i}.jpg": png(i), f"{i}.json": about.encode(), f"{i}.txt": name.encode()}
    file = archive(tmp_path / "d.tar", members)
    assert here(file).labels.tolist() == [0, 1, 0]
    assert here(file, label="species").classes == ("cat", "dog")
    assert here(file, label="txt", id="n").ids.tolist() == ["id0", "id1", "id2"]
    with pytest.raises(
        DataError, match=r"missing values \(null or empty\) in 'kind' of json: ids 0, 1"
    ):
        here(file, label="kind")


def test_equal_keys_of_two_archives_are_two_samples(tmp_path: Path) -> None:
    for name in ("a", "b"):
        archive(tmp_path / f"{name}.tar", samples_of(range(2)))
    assert here(tmp_path).ids.tolist() == ["a/a/k0", "a/a/k1", "b/a/k0", "b/a/k1"]


def test_a_broken_or_missing_image_is_skipped_and_named(tmp_path: Path) -> None:
    members = samples_of(range(6))
    members["a/k2.png"] = members["a/k2.png"][:40]
    del members["a/k4.png"]
    samples = here(archive(tmp_path / "d.tar", members))
    assert samples.ids.tolist() == ["a/k0", "a/k1", "a/k3", "a/k5"]
    assert samples.skipped == {
        "a/k2": "cannot be decoded (truncated, damaged, or no PNG, JPEG, GIF, BMP, PPM, TIFF or "
        "WebP)",
        "a/k4": "hold no bytes",
    }


def test_images_that_do_not_fit_are_read_from_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = archive(tmp_path / "d.tar", samples_of(range(8)))
    whole = here(file)
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 100)
    lazy = here(file)
    assert isinstance(lazy.inputs, LazyInputs)
    order = np.array([7, 0, 3, 3])
    assert torch.equal(lazy.batch(order), whole.batch(order))
    assert lazy.fingerprint() == here(file).fingerprint()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd.png", "a name that leads outside the archive: '/etc/passwd.png'"),
        ("../../k.png", "a name that leads outside the archive"),
        ("a/../../k.png", "a name that leads outside the archive"),
        ("..\\k.png", "a name that leads outside the archive"),
    ],
)
def test_hostile_names_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message.replace("\\", "\\\\")):
        here(archive(tmp_path / "d.tar", {**samples_of(range(4)), name: png(0)}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    file = archive(tmp_path / "d.tar", samples_of(range(4)))
    with tarfile.open(file, "a") as tar:
        member = tarfile.TarInfo("k9.png")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(DataError, match=r"a member that is no plain file: 'k9\.png'"):
        here(file)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    file = archive(tmp_path / "d.tar", samples_of(range(6)))
    data = file.read_bytes()
    file.write_bytes(data[:3000])
    with pytest.raises(DataError, match=r"not a tar file, or a damaged one|damaged at byte"):
        here(file)
    with tarfile.open(tmp_path / "e.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    start = data.index(b"a/k3.png\0")
    file.write_bytes(data[:start] + b"\xff" * 200 + data[start + 200 :])
    with pytest.raises(DataError, match=f"damaged at byte {start}"):
        here(file)
    file.write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match="not a tar file"):
        here(file)
    with tarfile.open(tmp_path / "c.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(DataError, match=r"unpack \.tar\.gz to \.tar"):
        here(tmp_path / "c.tar")


def test_a_size_that_leads_back_is_damage(tmp_path: Path) -> None:
    file = archive(tmp_path / "d.tar", samples_of(range(4)))
    data = bytearray(file.read_bytes())
    start = data.index(b"a/k2.png\0")
    data[start + 124 : start + 136] = b"\xff" * 11 + b"\x00"  # a negative number in base 256
    header = bytearray(data[start : start + 512])
    header[148:156] = b" " * 8
    data[start + 148 : start + 156] = f"{sum(header):06o}\0 ".encode()
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        here(file)


def test_samples_without_a_label_or_with_two_members_of_one_name_are_named(tmp_path: Path) -> None:
    members = samples_of(range(4))
    del members["a/k2.cls"]
    with pytest.raises(
        DataError, match=r"missing values \(null or empty\) in the member cls: ids a/k2"
    ):
        here(archive(tmp_path / "a.tar", members))
    members = {**samples_of(range(4)), "a/k0.PNG": png(1)}
    with pytest.raises(DataError, match=r"two members of one sample: a/k0\.png"):
        here(archive(tmp_path / "b.tar", members))
    with pytest.raises(DataError, match=r"the members xyz, cls, none of which is an image"):
        here(archive(tmp_path / "c.tar", {"k.xyz": b"1", "k.cls": b"0"}))
    with pytest.raises(DataError, match="the members png, none of which is a label"):
        here(archive(tmp_path / "d.tar", {"k.png": png(0), "j.png": png(1)}))
    with pytest.raises(DataError, match=r"no member of the archive is called key\.ext"):
        here(archive(tmp_path / "e.tar", {"README": b"", ".x/k.png": b""}))
