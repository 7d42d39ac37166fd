import os
from pathlib import Path

import pytest

from compress.errors import CompressError
from compress.files import (
    atomic_write,
    cache_folder,
    check_plain,
    file_digest,
    parse_json,
    parse_toml,
    printable,
    read_checked,
    read_text,
    readable_name,
    remove_unfinished,
    to_json,
    write_checked,
    write_text,
)


def test_a_write_makes_the_folders_above(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "file.txt"
    for text in ("old", "new"):
        write_text(path, text)
        assert path.read_text() == text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="stopped"), atomic_write(path) as partial:
        partial.write_text("half")
        raise RuntimeError("stopped")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "model.onnx.123-0a1b2c3d.unfinished"
    users = tmp_path / "my.unfinished"
    for path in (left, users):
        path.touch()
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [users]


def test_checked_bytes_are_returned_only_if_intact(tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert read_checked(path) is None
    write_checked(path, b"content")
    assert read_checked(path) == b"content"
    path.write_bytes(path.read_bytes()[:-1])
    assert read_checked(path) is None


def test_digest_and_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc").startswith("ba7816bf8f01cfea")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "inf is not finite"),
        ({"a": [2**63]}, "an integer has more than 64 bits"),
        ([object], "is not a string, number, list, or table; quote it"),
    ],
)
def test_what_json_cannot_represent_is_refused(value: object, message: str) -> None:
    check_plain({"a": [1, 2.5, "x", None, True, 2**63 - 1]})
    with pytest.raises(CompressError, match=message):
        check_plain(value)


def test_nesting_is_limited() -> None:
    value: object = 1
    for _ in range(31):
        value = [value]
    check_plain(value)
    with pytest.raises(CompressError, match="is nested more than 32 levels deep"):
        check_plain([[value]])


def test_text_is_parsed_or_explained(tmp_path: Path) -> None:
    assert parse_json('{"a": 1}') == {"a": 1}
    assert parse_toml("a = [1]") == {"a": [1]}
    assert to_json({"a": 1}) == '{\n  "a": 1\n}\n'
    with pytest.raises(CompressError, match="^it is not JSON: "):
        parse_json("{")
    with pytest.raises(CompressError, match="is not a string, number, list, or table"):
        parse_toml("a = 2020-01-01")
    with pytest.raises(CompressError, match="^it is not a file$"):
        read_text(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(CompressError, match="^it is not UTF-8 text$"):
        read_text(tmp_path / "latin")


def test_names_become_printable_text() -> None:
    assert readable_name(os.fsencode("é") + b"\xff") == "é\\xff"
    assert printable("a\nb\x1b[0m\u2028") == "a\\nb\\x1b[0m\\u2028"
