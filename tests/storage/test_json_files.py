"""Reading JSON: one object comes back, anything else is our error."""

import pytest

from expunge.errors import ConfigError, DataError, RunError
from expunge.storage import json_files
from expunge.storage.json_files import read_json, read_toml


def test_an_object_is_read(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"ä": [1, -9223372036854775808, 18446744073709551615, 0.5, NaN]}', "utf-8")
    values = read_json(file)["ä"]
    assert values[:4] == [1, -(2**63), 2**64 - 1, 0.5]
    assert values[4] != values[4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read: Expecting property name"),
        (b"", "cannot be read: Expecting value"),
        (b'{"a": "\xff"}', "cannot be read: 'utf-8' codec"),
        (b'\xef\xbb\xbf{"a": 1}', "cannot be read: Unexpected UTF-8 BOM"),
        (b"[1, 2]", "holds a list, not an object"),
        (b"null", "holds a NoneType, not an object"),
        (b'{"a": 123456789012345678901}', "cannot be read: an integer of 21 digits"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read: an integer of 10,000 digits"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    ],
)
def test_what_is_not_an_object_is_our_error_with_the_file_and_the_fix(tmp_path, content, message):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(file, error=DataError, fix="write it again")
    assert message in caught.value.what
    assert caught.value.where == str(file)
    assert caught.value.fix == "write it again"


def test_a_missing_file_a_folder_and_a_file_too_large_are_our_error(tmp_path, monkeypatch):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RunError, match="cannot be read"):
            read_json(path)
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    monkeypatch.setattr(json_files, "MAX_BYTES", 7)
    with pytest.raises(RunError, match="8 bytes, expected at most 7"):
        read_json(str(file))


def test_a_toml_file_of_a_windows_editor_is_read(tmp_path):
    (tmp_path / "spec.toml").write_bytes(b"\xef\xbb\xbfseed = 1\r\n[model]\r\n")
    assert read_toml(tmp_path / "spec.toml", error=ConfigError) == {"seed": 1, "model": {}}
