"""Encoded bytes become upright 8-bit RGB, or one reason why not."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ssl_kd.data.sources.decode import MAX_PIXELS, UnreadableError, decode

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "WEBP")


def scene(height=24, width=32):
    """A smooth picture whose corners differ, so that a turn or a mirror shows."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    return Image.fromarray(np.stack([red, green, 128 + 0 * red], 2).round().astype(np.uint8))


def encoded(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png_claiming(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 999) + b"IDAT" + b"x" * 999


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_were_saved(kind):
    how = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(decode(encoded(scene(), kind, **how))), pixels(scene()))


@pytest.mark.parametrize(("kind", "how"), [("JPEG", {"quality": 95, "subsampling": 0}), ("GIF", {})])
def test_lossy_formats_come_close(kind, how):
    assert np.abs(pixels(decode(encoded(scene(), kind, **how))) - pixels(scene())).mean() < 12


def test_greyscale_becomes_three_equal_channels():
    given = pixels(decode(encoded(scene().convert("L"))))
    assert np.array_equal(given, np.repeat(np.asarray(scene().convert("L"))[..., None], 3, 2))


def test_one_bit_pictures_are_black_and_white():
    given = pixels(decode(encoded(scene().convert("1"))))
    assert set(np.unique(given)) == {0, 255}


def test_transparent_parts_are_white_in_every_way_of_saying_transparent():
    rgba = scene().convert("RGBA")
    rgba.putpixel((3, 4), (10, 20, 30, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    assert pixels(decode(encoded(rgba)))[4, 3].tolist() == [255, 255, 255]
    assert pixels(decode(encoded(rgba)))[5, 3].tolist() == pixels(scene())[5, 3].tolist()
    assert pixels(decode(encoded(palette, transparency=0)))[0].tolist() == [[255, 255, 255], [0, 0, 200]]
    assert pixels(decode(encoded(palette.convert("RGB"), transparency=(0, 0, 200))))[0, 1].tolist() == [255, 255, 255]
    assert pixels(decode(encoded(Image.new("LA", (1, 1), (9, 0)))))[0, 0].tolist() == [255, 255, 255]


def test_half_transparent_is_half_white():
    given = pixels(decode(encoded(Image.new("RGBA", (1, 1), (0, 100, 200, 128)))))[0, 0]
    assert np.abs(given - [127, 177, 227]).max() <= 1


def test_cmyk_jpeg_shows_its_colours():
    cmyk = scene().convert("CMYK")
    given = pixels(decode(encoded(cmyk, "JPEG", quality=95, subsampling=0)))
    assert np.abs(given - pixels(scene())).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_keeps_the_upper_byte(kind):
    deep = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    assert pixels(decode(encoded(Image.fromarray(deep), kind)))[0, :, 0].tolist() == [0, 0, 1, 156, 255]


def test_floating_point_samples_are_refused_with_the_reason():
    with pytest.raises(UnreadableError, match="no agreed range"):
        decode(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(kind, orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = scene().transpose(turns[orientation]) if orientation > 1 else scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    given = decode(encoded(stored, kind, exif=exif, quality=95))
    assert given.size == scene().size
    assert np.abs(pixels(given) - pixels(scene())).mean() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow only warns, which these tests take for an error
def test_a_damaged_exif_block_costs_nothing():
    given = decode(encoded(scene(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"))
    assert given.size == scene().size


def test_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert pixels(decode(data))[0, 0, 0] > 200, kind


def test_every_cut_of_a_file_is_refused():
    smooth = scene(64, 96)
    for data in (encoded(smooth, "JPEG"), encoded(smooth, "PNG"), encoded(smooth, "BMP"), encoded(smooth, "PPM")):
        for share in (0.02, 0.2, 0.5, 0.9):
            with pytest.raises(UnreadableError):
                decode(data[: int(share * len(data))])


@pytest.mark.parametrize(
    "data", [b"", b"hello, I am a text file\n" * 20, b"\0" * 64, b"GIF89a", b"\xff\xd8\xff", b"BM"]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(UnreadableError):
        decode(data)


def test_formats_that_run_other_programs_are_not_even_tried():
    with pytest.raises(UnreadableError, match="known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


@pytest.mark.parametrize("side", [9_500, 13_000, 60_000])
def test_decompression_bombs_are_refused_by_their_header(side):
    assert side * side > MAX_PIXELS
    with pytest.raises(UnreadableError, match="bomb"):
        decode(png_claiming(side, side))


def test_random_damage_gives_a_picture_or_a_reason():
    rng = np.random.default_rng(0)
    files = [encoded(scene(), kind) for kind in (*LOSSLESS, "JPEG", "GIF")]
    for trial in range(400):
        data = bytearray(files[trial % len(files)])
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        with contextlib.suppress(UnreadableError):
            assert decode(bytes(data)).mode == "RGB"


def test_the_hint_makes_large_jpegs_smaller_but_never_below_it():
    data = encoded(scene(480, 640), "JPEG", quality=95)
    whole, hinted = decode(data), decode(data, shorter=100)
    assert whole.size == (640, 480)
    assert hinted.size == (160, 120)
    assert decode(data, shorter=480).size == (640, 480)
    assert np.abs(pixels(whole.resize((40, 30))) - pixels(hinted.resize((40, 30)))).mean() < 3
