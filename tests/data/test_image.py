import errno
import io
import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data import image
from compress.data.config import DataConfig
from compress.data.image import (
    FORMATS,
    MAX_PIXELS,
    Mode,
    decode_image,
    range_warning,
    read_image,
)
from compress.data.load import load_data
from compress.errors import DataError

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
"""All 16-bit values."""
BY_HAND = {0: 0, 128: 0, 129: 1, 385: 1, 386: 2, 32767: 127, 32768: 128, 65406: 254, 65407: 255}
"""16 bits to 8: the nearest to value / 257."""


def pixels(path: Path, mode: Mode = "L") -> np.ndarray:
    return np.asarray(read_image(path, mode))


def png(bits: int, color: int, row: bytes, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a PNG file of one row, with chunks that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    body = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in body
    )


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """Returns an uncompressed TIFF file of gray `[height, width]`, with tags of one's own."""
    height, width = values.shape
    order = ">" if values.dtype.byteorder == ">" else "<"
    bits = tags.pop("bits", 8 * values.itemsize)
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: tags.pop("photometric", 1)}
    entries |= {273: 8, 277: 1, 278: height, 279: values.nbytes, 339: tags.pop("format", 1)}
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in sorted(entries.items()):
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    start = 8 + values.nbytes
    magic = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, start)
    return magic + values.tobytes() + directory + bytes(4)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_16_bits_become_8(tmp_path: Path, suffix: str, mode: Mode) -> None:
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP).save(path)
    read = pixels(path, mode).reshape(65536, -1)
    assert read.dtype == np.uint8
    assert {value: int(read[value, 0]) for value in BY_HAND} == BY_HAND
    assert np.array_equal(read, np.repeat(np.rint(RAMP / 257).reshape(-1, 1), read.shape[1], 1))


@pytest.mark.parametrize("name", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_every_16_bit_mode_is_scaled(name: str) -> None:
    kind = {"I;16B": ">u2", "I;16N": "=u2", "I": "<i4"}.get(name, "<u2")
    picture = Image.frombytes(name, (256, 256), RAMP.astype(kind).tobytes())
    scaled = image._to_8_bits(picture)
    assert scaled.mode == "L"
    assert np.array_equal(np.asarray(scaled), np.rint(RAMP / 257))


def test_big_endian_tiff_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "big.tif"
    path.write_bytes(tiff(RAMP.astype(">u2")))
    with Image.open(path) as picture:
        assert picture.mode == "I;16B"
    assert np.array_equal(pixels(path), np.rint(RAMP / 257))


def test_16_bits_where_0_is_white_are_turned(tmp_path: Path) -> None:
    path = tmp_path / "white.tif"
    path.write_bytes(tiff(np.array([[0, 65535, 257 * 5]], np.uint16), photometric=0))
    assert pixels(path).tolist() == [[255, 0, 250]]


def test_12_bits_become_8(tmp_path: Path) -> None:
    path = tmp_path / "12.tif"  # 0, 4095, 2048 and 8, twelve bits each
    packed = np.frombuffer(bytes.fromhex("000fff800008"), np.uint8)
    content = bytearray(tiff(packed[None], bits=12))
    content = bytearray(bytes(content).replace(struct.pack("<HHII", 256, 4, 1, 6),
                                               struct.pack("<HHII", 256, 4, 1, 4)))  # fmt: skip
    path.write_bytes(content)
    assert pixels(path).tolist() == [[0, 255, 128, 0]]


def test_a_pgm_of_fewer_bits_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "1000.pgm"
    path.write_bytes(b"P2\n3 1\n1000\n0 500 1000\n")
    assert pixels(path).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("float.tif", tiff(np.array([[0.5, 1]], np.float32), format=3), "floating-point"),
        ("float.pfm", b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "floating-point"),
        ("signed.tif", tiff(np.array([[-5, 5]], np.int16), format=2), "signed integers"),
        ("signed8.tif", tiff(np.array([[-5, 5]], np.int8), format=2), "signed integers"),
        ("int.tif", tiff(np.array([[0, 70_000]], np.int32), format=2), "signed integers"),
        ("unsigned.tif", tiff(np.array([[0, 70_000]], np.uint32)), "32-bit integers"),
    ],
)
def test_values_of_unknown_range_are_refused(
    tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"has {part}.*save it as unsigned 8 or 16 bits") as caught:
        read_image(path, "RGB")
    assert str(caught.value).startswith(str(path))


RED, HALF = (255, 0, 0), (127, 127, 255)
"""Red, and blue of which half is seen on white."""


def modes() -> Iterator[tuple[str, Image.Image, list[tuple[int, ...]]]]:
    """Yields each of Pillow's 8-bit modes with what two pixels of it must become."""
    rgb = Image.new("RGB", (2, 1), RED)
    yield "RGB", rgb, [RED, RED]
    for mode in ("RGBX", "CMYK", "HSV", "RGBA", "P"):
        yield mode, rgb.convert(mode), [RED, RED]
    yield "YCbCr", rgb.convert("YCbCr"), [(254, 0, 0)] * 2
    yield "1", Image.fromarray(np.array([[True, False]])), [(255,) * 3, (0,) * 3]
    yield "L", Image.fromarray(np.array([[7, 200]], np.uint8)), [(7,) * 3, (200,) * 3]
    clear = Image.new("RGBA", (2, 1), (9, 9, 9, 0))
    clear.putpixel((1, 0), (0, 0, 255, 128))
    yield "RGBA, clear", clear, [(255,) * 3, HALF]
    yield "RGBa", clear.convert("RGBa"), [(255,) * 3, HALF]
    gray = Image.new("LA", (2, 1), (0, 0))
    gray.putpixel((1, 0), (10, 255))
    yield "LA", gray, [(255,) * 3, (10,) * 3]
    yield "La", gray.convert("La"), [(255,) * 3, (10,) * 3]
    yield "PA", clear.convert("PA"), [(255,) * 3, HALF]
    keyed = rgb.copy()
    keyed.info["transparency"] = RED
    yield "RGB with a key", keyed, [(255,) * 3] * 2
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    palette.info["transparency"] = b"\xff\x80"
    yield "P with alpha", palette, [RED, HALF]
    index = palette.copy()
    index.info["transparency"] = 1
    yield "P with a key", index, [RED, (255,) * 3]


@pytest.mark.parametrize(("name", "picture", "expected"), [*modes()])
def test_every_8_bit_mode(name: str, picture: Image.Image, expected: list[tuple[int, ...]]) -> None:
    colors = np.asarray(image._flatten(image._to_8_bits(picture)).convert("RGB"))[0].astype(int)
    assert np.abs(colors - expected).max() <= 1  # palettes and premultiplied colors are rounded
    gray = np.asarray(image._flatten(image._to_8_bits(picture)).convert("L"))[0]
    luma = np.asarray(expected) @ (0.299, 0.587, 0.114)
    assert np.abs(gray - luma).max() <= 1


def test_lab_becomes_colors_and_gray(tmp_path: Path) -> None:
    path = tmp_path / "lab.tif"
    Image.new("RGB", (2, 2), (200, 100, 50)).convert("LAB").save(path)
    assert np.abs(pixels(path, "RGB").astype(int) - (200, 100, 50)).max() <= 2
    assert pixels(path, "L").shape == (2, 2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(16, 0, struct.pack(">3H", 0, 300, 301), 3, (b"tRNS", b"\x01\x2c")), [0, 255, 1]),
        (png(8, 0, bytes([0, 100, 101]), 3, (b"tRNS", b"\0d")), [0, 255, 101]),
        (png(16, 4, struct.pack(">4H", 0x1200, 65535, 0, 0), 2), [18, 255]),
        (
            png(16, 2, struct.pack(">6H", 0x1200, 0, 0, 0, 0, 0), 2,
                (b"tRNS", struct.pack(">3H", 0x1200, 0, 0))),
            [255, 0],
        ),
    ],
    ids=["gray 16", "gray 8", "gray and alpha 16", "color 16"],
)  # fmt: skip
def test_transparency_of_png(tmp_path: Path, content: bytes, expected: list[int]) -> None:
    path = tmp_path / "key.png"
    path.write_bytes(content)
    assert pixels(path).tolist() == [expected]


QUADRANTS = np.kron(np.array([[0, 80], [160, 240], [40, 120]], np.uint8), np.ones((8, 8), np.uint8))
TURNED = {
    1: QUADRANTS,
    2: QUADRANTS[:, ::-1],
    3: QUADRANTS[::-1, ::-1],
    4: QUADRANTS[::-1],
    5: QUADRANTS.T,
    6: np.rot90(QUADRANTS, -1),
    7: QUADRANTS[::-1, ::-1].T,
    8: np.rot90(QUADRANTS),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(QUADRANTS).save(path, exif=exif, quality=100)
    read = pixels(path).astype(int)
    assert read.shape == TURNED[orientation].shape
    assert np.abs(read - TURNED[orientation]).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif", "avif"])
def test_of_several_frames_the_first_is_used(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"frames.{suffix}"
    first, second = Image.new("RGB", (8, 8), (250, 250, 250)), Image.new("RGB", (8, 8))
    first.save(path, save_all=True, append_images=[second], duration=100)
    decoded = decode_image(path, "L")
    assert np.asarray(decoded.image).min() > 240
    assert decoded.has_more_frames
    first.save(path)
    assert not decode_image(path, "L").has_more_frames


def test_the_second_image_of_a_photograph_is_no_frame(
    tmp_path: Path,
) -> None:
    path = tmp_path / "phone.jpg"
    photograph, depth = Image.new("RGB", (8, 8), (99, 99, 99)), Image.new("RGB", (8, 8))
    photograph.save(path, "MPO", save_all=True, append_images=[depth])
    assert (pixels(path) == 99).all()
    assert not decode_image(path, "L").has_more_frames


def test_the_limit_of_pixels(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"  # 20,000 x 20,000 in 50 kB
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(DataError, match=r"bomb.png has more than 134 million pixels; shrink it$"):
        read_image(path, "L")
    wide = tmp_path / "more.bmp"  # between Pillow's warning and its error
    Image.new("1", (MAX_PIXELS // 8192 + 32, 8192)).save(wide)
    with pytest.raises(DataError, match="134 million"):
        read_image(wide, "L")


def test_8000_by_8000_and_1_by_1_are_read(tmp_path: Path) -> None:
    for side in (8000, 1):
        path = tmp_path / f"{side}.png"
        Image.new("L", (side, side), 77).save(path)
        picture = read_image(path, "L")
        assert picture.size == (side, side)
        assert picture.getpixel((side - 1, 0)) == 77


def test_what_is_no_image_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(
        whole, "PNG"
    )
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    expected = {
        "empty.png": "is empty",
        "text.jpg": f"not in one of these formats: {', '.join(FORMATS)}",
        "folder.png": "is not a file",
        "pipe.png": "is not a file",
        "cut.png": "cannot be read as an image",
        "absent.png": "cannot be read: No such file",
    }
    for name, part in expected.items():
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name, "RGB")
        assert str(caught.value).startswith(f"{tmp_path / name} ")
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_programs_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "page.eps"  # Pillow would start Ghostscript
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(DataError, match="not in one of these formats"):
        read_image(path, "RGB")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on open files to lower")
def test_a_shortage_of_ours_is_not_the_files_fault(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "good.png"
    Image.new("L", (4, 4)).save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = os.open(path, os.O_RDONLY)
    os.close(used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        with pytest.raises(OSError, match="open files") as caught:
            read_image(path, "L")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


@cache
def samples() -> dict[str, bytes]:
    """Returns small files of every format, with what makes their parsers work."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    rgb, gray16 = Image.fromarray(noise), Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    rgba, palette = rgb.convert("RGBA"), rgb.quantize(32)
    rgba.putalpha(Image.fromarray(noise[..., 1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, object] = {"save_all": True}
    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgba, "AVIF", {"exif": exif}), (rgb, "AVIF", frames),
        (rgb, "BMP", {}), (palette, "BMP", {}),
        (palette, "GIF", {"transparency": 3}), (palette, "GIF", frames),
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb, "MPO", frames),
        (rgb, "JPEG2000", {}), (gray16, "JPEG2000", {}),
        (rgba, "PNG", {"exif": exif}), (gray16, "PNG", {}),
        (palette, "PNG", {"transparency": b"\x10\x20"}), (rgb, "PNG", frames),
        (rgb, "PPM", {}), (gray16, "PPM", {}), (rgb.convert("1"), "PPM", {}),
        (rgb, "TIFF", {"exif": exif}), (gray16, "TIFF", {}), (rgb, "TIFF", frames),
        (rgba, "WEBP", {"exif": exif}), (rgb, "WEBP", {"lossless": True}), (rgb, "WEBP", frames),
    ]  # fmt: skip
    files = {}
    for number, (picture, kind, options) in enumerate(kinds):
        file = io.BytesIO()
        # Copies: Pillow leaves traces of a format in what it has saved.
        second = {"append_images": [rgb.copy()]} if "save_all" in options else {}
        picture.copy().save(file, kind, **options, **second)
        files[f"{number}-{kind}"] = file.getvalue()
    return files


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Returns a file with a few bytes flipped, set, cut out or repeated; headers more often."""
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(out) if draw.random() < 0.5 else min(len(out), 80))
        end = place + draw.randrange(1, 40)
        match draw.randrange(5):
            case 0:
                out[place] ^= 1 << draw.randrange(8)
            case 1:
                out[place : place + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            case 2:
                del out[max(place, 1) :]
            case 3:
                del out[place:end]
                out = out or bytearray(b"\0")
            case 4:
                out[place:place] = out[place:end]
    return bytes(out)


@pytest.mark.parametrize("name", samples())
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    draw, path, content = random.Random(name), tmp_path / "damaged", samples()[name]
    path.write_bytes(content)
    assert min(read_image(path, "RGB").size) == 24
    for _ in range(60):
        path.write_bytes(mutated(content, draw))
        try:
            assert read_image(path, "L").mode == "L"
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_images_that_use_little_of_their_range_are_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    files = {"dark": 4096, "full": 65536}
    for name, top in files.items():
        paths = []
        for number in range(40):
            values = generator.integers(0, top, (16, 16)).astype(np.uint16)
            values[0, 0] = 65535  # a dead pixel
            paths.append(tmp_path / f"{name}-{number}.png")
            Image.fromarray(values).save(paths[-1])
        paths[0].write_text("not an image")
        warning = range_warning(tmp_path, [path.name for path in paths])
        assert (warning is None) == (name == "full")
        if warning is not None:
            assert (
                "a sample of 32 training images uses only the values 0 to 16 of 0..255" in warning
            )


def test_a_folder_of_dark_images_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                twelve_bits = np.arange(4096, dtype=np.uint16).reshape(64, 64)
                Image.fromarray(twelve_bits).save(tmp_path / split / name / f"{number}.png")
    load_data(f"imagefolder:{tmp_path}", DataConfig(size=16), seed=0)
    told = capsys.readouterr().err
    assert "a sample of 6 training images uses only the values 0 to 16 of 0..255" in told
