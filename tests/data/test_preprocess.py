from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data.image import read_image
from compress.data.preprocess import Preprocess, picture_to_pixels

GREY = Preprocess(size=4, resize=4, channels=1, mean=(0.5,), std=(0.5,))
COLOUR = Preprocess(size=8, resize=10, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_picture_of_the_right_size_passes_unchanged() -> None:
    array = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert np.array_equal(picture_to_pixels(Image.fromarray(array), GREY), array[None])


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (3, 5), (8, 8)])
def test_any_size_becomes_the_networks_input(size: tuple[int, int]) -> None:
    pixels = picture_to_pixels(Image.new("RGB", size), COLOUR)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8


def test_the_centre_is_kept() -> None:
    array = np.zeros((10, 20, 3), np.uint8)
    array[:, 6:14] = 200
    pixels = picture_to_pixels(Image.fromarray(array), COLOUR)
    assert (pixels == 200).all()


def test_the_camera_orientation_is_applied(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 3), np.uint8)
    array[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    path = tmp_path / "turned.png"
    Image.fromarray(array).save(path, exif=exif)
    spec = Preprocess(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = picture_to_pixels(read_image(path, spec.mode), spec)
    assert (pixels[:, 4:] == 255).all()
    assert (pixels[:, :4] == 0).all()
