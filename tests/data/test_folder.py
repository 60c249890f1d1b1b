"""Folders, tables and paths as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from expunge.data import DataConfig, Samples, images, read
from expunge.data.encoded import LFS_POINTER
from expunge.errors import DataError
from expunge.storage import user_cache

DAMAGED = "cannot be decoded (truncated, damaged, or no PNG, JPEG, GIF, BMP, PPM, TIFF or WebP)"


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)


def touch(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def here(path: Path, **settings: Any) -> Samples:
    return read(DataConfig(path.name, **settings), folder=path.parent)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of two pictures."""
    for i, name in enumerate(("cat/a.png", "cat/deep/b.jpg", "dog/c.png", "dog/d.jfif")):
        if name.endswith("jfif"):
            picture(tmp_path / "d.jpg", i)
            touch(tmp_path / "pictures" / name, (tmp_path / "d.jpg").read_bytes())
        else:
            picture(tmp_path / "pictures" / name, i)
    return tmp_path / "pictures"


def test_hidden_folders_hold_no_samples(pictures: Path) -> None:
    expected = here(pictures).ids.tolist()
    assert expected == ["cat/a.png", "cat/deep/b.jpg", "dog/c.png", "dog/d.jfif"]
    for name in (
        "cat/.ipynb_checkpoints/a-checkpoint.png",
        "dog/deep/.cache/x.png",
        "dog/._c.png",
        "dog/@eaDir/c.png",
        ".git/x.png",
        "dog/__MACOSX/c.png",
        "__MACOSX/dog/c.png",
        "@eaDir/c.png",
    ):
        picture(pictures / name)
    touch(pictures / "cat" / "Thumbs.db")
    samples = here(pictures)
    assert samples.ids.tolist() == expected
    assert not samples.skipped


def test_files_of_unknown_suffix_are_skipped_and_named(pictures: Path) -> None:
    for name in ("cat/a.txt", "cat/a.json", "dog/raw.heic", "dog/README"):
        touch(pictures / name)
    samples = here(pictures)
    assert len(samples) == 4
    assert samples.skipped == {
        "cat/a.json": "have the suffix .json, which is not read",
        "cat/a.txt": "have the suffix .txt, which is not read",
        "dog/README": "have no suffix",
        "dog/raw.heic": "have the suffix .heic, which is not read",
    }


@pytest.mark.parametrize(
    ("suffix", "fix"),
    [(".mp3", "ffmpeg"), (".heic", "PNG or JPEG"), (".npy", "from_dataset"), (".txt", "JSONL")],
)
def test_folders_of_other_kinds_lead_to_one_that_is_read(
    suffix: str, fix: str, tmp_path: Path
) -> None:
    for name in ("yes/a", "yes/b", "no/c"):
        touch(tmp_path / "data" / (name + suffix))
    picture(tmp_path / "data" / "no" / "cover.png")
    if suffix == ".txt":
        (tmp_path / "data" / "no" / "cover.png").unlink()
    with pytest.raises(DataError, match=rf"kinds that are not read: 3 \{suffix}\n.*{fix}"):
        here(tmp_path / "data")


def test_folders_of_splits_lead_to_one_of_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / "data" / split / name / "a.png")
    with pytest.raises(DataError, match=r"splits, not classes: test, train\n.*data/test"):
        here(tmp_path / "data")
    assert here(tmp_path / "data" / "train").classes == ("cat", "dog")


def test_no_message_advises_to_remove_folders(pictures: Path) -> None:
    (pictures / "notes").mkdir()
    with pytest.raises(
        DataError, match="class folders without an image or a clip: notes"
    ) as caught:
        here(pictures)
    assert "remove" not in str(caught.value)


def test_pointers_of_git_lfs_are_named(pictures: Path, tmp_path: Path) -> None:
    pointer = LFS_POINTER + b"/spec/v1\noid sha256:0\nsize 9\n"
    touch(pictures / "cat" / "z.png", pointer)
    assert "git lfs pull" in here(pictures).skipped["cat/z.png"]
    touch(tmp_path / "d.parquet", pointer)
    with pytest.raises(DataError, match=r"a pointer of Git LFS, not the file\n  fix: git lfs pull"):
        here(tmp_path / "d.parquet")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ", ", " ; "])
def test_tables_are_read_with_any_separator_and_stray_spaces(
    separator: str, pictures: Path
) -> None:
    rows = [("image", "label", "note"), ("cat/a.png", "cat", "x"), ("dog/c.png", " dog ", '"a,b"')]
    text = "\ufeff" + "\r\n".join(separator.join(row) for row in rows) + "\r\n"
    (pictures / "d.csv").write_text(text, encoding="utf-8", newline="")
    samples = here(pictures / "d.csv")
    assert samples.classes == ("cat", "dog")
    assert samples.labels.tolist() == [0, 1]
    assert samples.inputs.batch(np.arange(2))[:, 0, 0, 0].tolist() == [0, 2]


def test_a_table_in_another_encoding_says_how_to_save_it(pictures: Path) -> None:
    (pictures / "d.csv").write_bytes("image,label\ncat/a.png,Bär\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"(?s)not a text table.*in UTF-8"):
        here(pictures / "d.csv")


def table(pictures: Path, paths: list[str], **settings: Any) -> Samples:
    lines = ["image,label", *(f"{p},{'cat' if i < 2 else 'dog'}" for i, p in enumerate(paths))]
    (pictures / "d.csv").write_text("\n".join(lines))
    return here(pictures / "d.csv", **settings)


def test_backslashes_and_absolute_paths_inside_the_folder_are_read(pictures: Path) -> None:
    names = ["cat/a.png", "cat/deep/b.jpg", "dog/c.png"]
    expected = table(pictures, names).fingerprint()
    assert table(pictures, [n.replace("/", "\\") for n in names]).fingerprint() == expected
    assert table(pictures, [f".\\{n}" for n in names]).fingerprint() == expected
    assert table(pictures, [str(pictures / n) for n in names]).fingerprint() == expected


def test_paths_outside_the_folder_are_refused_and_root_names_another(
    pictures: Path, tmp_path: Path
) -> None:
    names = ["cat/a.png", "cat/deep/b.jpg", "dog/c.png"]
    lists = tmp_path / "lists"
    lists.mkdir()
    absolute = [str(pictures / n) for n in names]
    with pytest.raises(DataError, match="outside the folder"):
        table(lists, absolute)
    with pytest.raises(DataError, match=r"3 of 3 images cannot be used\n.*No such file"):
        table(lists, names)
    for paths in (absolute, names):
        assert len(table(lists, paths, root=str(pictures))) == 3
        assert len(read(DataConfig("lists/d.csv", root="pictures"), folder=tmp_path)) == 3
    for bad in ("../lists/d.csv", "C:\\pictures\\a.png", "/etc/passwd", "a\0b"):
        with pytest.raises(DataError, match=r"outside the folder .*\n.*root names another"):
            table(lists, [names[0], bad, names[2]], root=str(pictures))


def test_what_cannot_be_decoded_is_remembered_for_many_images(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(user_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(images, "MIN_FILES", 2)
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 10)
    (pictures / "dog/c.png").write_bytes(b"broken")
    first = here(pictures)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_decode_all", None)
        again = here(pictures)
    assert again.skipped == first.skipped == {"dog/c.png": DAMAGED}
    assert again.fingerprint() == first.fingerprint()
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text('{"reasons": {"9": "are no images"}}')
    assert here(pictures).skipped == first.skipped
