import pytest

from compress.data.names import short_name


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("digits", "digits"),
        ("imagefolder:photos", "photos"),
        ("imagefolder:/home/me/photos/", "photos"),
    ],
)
def test_a_folder_is_named_by_its_last_part(data: str, name: str) -> None:
    assert short_name(data) == name
