from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data.image import read_image
from compress.data.preprocess import (
    MAX_ASPECT,
    Preprocess,
    preprocess_image,
    resize_short_side,
)

GREY = Preprocess(size=4, resize=4, channels=1, mean=(0.5,), std=(0.5,))
COLOUR = Preprocess(size=8, resize=10, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_image_of_the_right_size_passes_unchanged() -> None:
    array = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert np.array_equal(preprocess_image(Image.fromarray(array), GREY), array[None])


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (3, 5), (8, 8)])
def test_any_size_becomes_the_networks_input(size: tuple[int, int]) -> None:
    images = preprocess_image(Image.new("RGB", size), COLOUR)
    assert images.shape == (3, 8, 8)
    assert images.dtype == np.uint8


def test_the_center_is_kept() -> None:
    array = np.zeros((10, 20, 3), np.uint8)
    array[:, 6:14] = 200
    images = preprocess_image(Image.fromarray(array), COLOUR)
    assert (images == 200).all()


def test_the_camera_orientation_is_applied(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 3), np.uint8)
    array[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    path = tmp_path / "turned.png"
    Image.fromarray(array).save(path, exif=exif)
    spec = Preprocess(size=8, resize=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = preprocess_image(read_image(path, spec.mode), spec)
    assert (images[:, 4:] == 255).all()
    assert (images[:, :4] == 0).all()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 50_001)])
def test_an_extremely_long_image_stays_small(size: tuple[int, int]) -> None:
    assert resize_short_side(Image.new("L", size), 256, "bilinear").size in {
        (256, 4096),
        (4096, 256),
    }
    array = np.zeros(size[::-1], np.uint8)
    middle = tuple(slice(length // 2 - 8, length // 2 + 8) if length > 3 else slice(None)
                   for length in array.shape)  # fmt: skip
    array[middle] = 200
    images = preprocess_image(Image.fromarray(array), GREY)
    assert images.shape == (1, 4, 4)
    assert (images == 200).all()


@pytest.mark.parametrize("size", [(30, 20), (33, 33 * MAX_ASPECT), (MAX_ASPECT * 5, 5), (501, 97)])
def test_an_ordinary_image_is_resized_as_a_whole(size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(array)
    scale = 10 / min(size)
    width, height = round(size[0] * scale), round(size[1] * scale)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = whole[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(preprocess_image(image, COLOUR), expected)
