import pytest

from compress.log import count_of, say, track, waiting, warn, warn_once


def test_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("[bold]\nname")
    warn("careful")
    captured = capsys.readouterr()
    assert captured.err == "[bold]\\nname\ncareful\n"
    assert captured.out == ""


def test_a_warning_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("first", "second", "first"):
        warn_once(message)
    assert capsys.readouterr().err == "first\nsecond\n"


def test_log_files_get_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("working"):
        assert list(track(iter("abc"), "counting", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_counts_have_their_plural() -> None:
    assert [count_of(count, "layer") for count in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
    assert count_of(2, "class") == "2 classes"
