"""Encoded bytes -> an upright 8-bit RGB picture, or one reason why not.

Every rule about file formats, colour modes and damage lives here, so that a folder, an archive and a data set give
the same pixels for the same file. Only the formats in FORMATS are tried: Pillow also knows some that start other
programs (EPS runs Ghostscript), and a file name says nothing about its content. AVIF and JPEG 2000 are read where the
installed Pillow can, HEIC where pillow-heif is installed beside it.
"""

from __future__ import annotations

import importlib.util
import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ssl_kd.errors import shown_name

HEIF = importlib.util.find_spec("pillow_heif") is not None
JPEG_NAMES = (".jpg", ".jpeg", ".jpe", ".jfif")
# Formats of Pillow's that every build has, or this one, and the endings of their files.
KNOWN: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("JPEG", True, JPEG_NAMES),
    ("PNG", True, (".png",)),
    ("BMP", True, (".bmp",)),
    ("GIF", True, (".gif",)),
    ("TIFF", True, (".tif", ".tiff")),
    ("WEBP", True, (".webp",)),
    ("PPM", True, (".ppm", ".pgm", ".pbm", ".pnm")),
    ("AVIF", bool(features.check("avif")), (".avif",)),
    ("JPEG2000", bool(features.check("jpg_2000")), (".jp2", ".j2k", ".jpx", ".jpf", ".j2c")),
    ("HEIF", HEIF, (".heic", ".heif")),
)
FORMATS = tuple(name for name, here, _ in KNOWN if here)
BUILT_IN = tuple(name for name in FORMATS if name != "HEIF")  # this one is registered when the first such file comes
EXTENSIONS = tuple(ending for _, here, endings in KNOWN if here for ending in endings)
MAX_PIXELS = 89_478_485  # Pillow's own line between a large picture and a decompression bomb: 256 MiB of RGB
MAX_BYTES = 1 << 30  # of one encoded file; no picture below MAX_PIXELS needs more
ORIENTED_BY = ("exif", "xmp")
STATES_DEPTH = ("PPM", "PNG")  # formats whose 32-bit integers are 16-bit samples, as Pillow hands them out
NO_RANGE = "samples have no agreed range; save the picture with 8 or 16 bits"
THIS_TIME = "could not be read this time: "


class UnreadableError(Exception):
    """One picture that cannot be had; the message is the reason, without the picture's name."""


def not_this_time(error: OSError | MemoryError) -> UnreadableError:
    """What to raise where the machine, not the picture, is at fault: a lock, a network disk, no memory.

    The reason begins with THIS_TIME, also in a file that it is stored in, so whoever reads it knows to try again.
    """
    if isinstance(error, MemoryError):
        return UnreadableError(THIS_TIME + "not enough memory")
    return UnreadableError(THIS_TIME + shown_name(error.strerror or str(error)))


def is_temporary(reason: str) -> bool:
    """Whether a picture with this reason may be readable another time; what is damaged stays damaged."""
    return reason.startswith(THIS_TIME)


def decode(data: bytes, shorter: int | None = None) -> Image.Image:
    """Return the picture in `data` as upright RGB; the first frame or page where there are several.

    shorter: a hint that the shorter side will be resized to this many pixels or fewer. A large JPEG is then decoded at
    a half, a quarter or an eighth of its size, never below the hint: faster, with slightly other pixels.
    Raises UnreadableError for empty, truncated, damaged, unknown and oversized data.
    """
    if not data:
        raise UnreadableError("empty file (0 bytes)")
    formats = FORMATS if HEIF and data[4:8] == b"ftyp" and _register_heif() else BUILT_IN
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            check_pixels(image)
            if shorter:
                image.draft(None, (shorter, shorter))  # None keeps the colour mode
            deep = _is_deep(image)
            image.load()
            return to_rgb(upright(image), image.format, deep)
    except UnreadableError:
        raise
    except MemoryError as error:
        raise not_this_time(error) from None
    except UnidentifiedImageError:
        raise UnreadableError(f"not a picture in a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(f"taken for a decompression bomb: {_one_line(error)}") from None
    except Exception as error:  # damaged files make decoders raise nearly anything: struct.error, KeyError, SyntaxError
        raise UnreadableError(f"damaged: {_one_line(error)}") from error


def check_pixels(image: Image.Image) -> None:
    """Raise UnreadableError for a picture whose header claims more than MAX_PIXELS, before any of it is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"taken for a decompression bomb: {width} x {height} pixels, more than {MAX_PIXELS:,}")


def upright(image: Image.Image) -> Image.Image:
    """Return the picture turned and mirrored as its EXIF orientation asks. A damaged EXIF block is ignored."""
    if image.format == "JPEG" and not any(key in image.info for key in ORIENTED_BY):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the picture itself is sound: a broken note about it is no reason to lose it
        return image


def to_rgb(image: Image.Image, kind: str | None = None, deep: bool = False) -> Image.Image:
    """Return 8-bit RGB: transparent parts over white (as a page shows them), 16- and 32-bit samples as `_eight_bits` says.

    kind: the format that it was read from. deep: whether its colours had 16 bits, of which Pillow kept the upper byte.
    Raises UnreadableError for floating-point samples, which have no agreed range, and where nothing would be left.
    """
    kind = kind or image.format
    if image.mode == "F":
        raise UnreadableError(f"floating-point {NO_RANGE}")
    if image.mode.startswith("I"):
        stated = image.mode == "I" and kind in STATES_DEPTH
        return Image.fromarray(_eight_bits(np.asarray(image), 65535 if stated else None)).convert("RGB")
    if deep:
        _must_show_something(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(samples: np.ndarray, largest: int | None = None) -> np.ndarray:
    """Grey of more than 8 bits to 8: the upper byte of 16; of the 12, or the 8, that are in use where no sample has more.

    Scanners and microscopes put 12 bits into 16: their upper byte is nearly black. The picture decides for itself, so
    one that is truly so dark (no sample above a sixteenth of white) is shown brighter than it is. Samples of 32 bits
    that need more than 16 are divided by the power of two that brings the largest into 8.
    largest: what the format says a sample can be. UnreadableError for negative samples, and where one colour is left.
    """
    wide = samples.astype(np.int64)
    largest = int(wide.max(initial=0)) if largest is None else largest
    bits = next((bits for bits in (8, 12, 16) if largest < 1 << bits), largest.bit_length())
    if wide.min(initial=0) < 0:
        raise UnreadableError(f"negative {NO_RANGE}")
    narrow = np.asarray(wide >> (bits - 8), np.uint8)
    if bits > 16 and narrow.min() == narrow.max() and wide.min() != wide.max():
        raise UnreadableError(f"32-bit {NO_RANGE}")
    return narrow


def _is_deep(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded picture has 16 bits for each of several channels; Pillow keeps 8 of them."""
    how = [tile[3] for tile in getattr(image, "tile", []) if len(tile) > 3]
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(args) for args in how)


def _must_show_something(image: Image.Image) -> None:
    colours = image.convert("RGB").getextrema()
    if max(band[1] for band in colours if isinstance(band, tuple)) < 16:
        raise UnreadableError(
            "16-bit colours whose upper bytes are all below 16: 12 bits or fewer in 16, which this library cannot "
            "recover; save the picture with 8 bits, or scaled to 16"
        )


def _register_heif() -> bool:
    from pillow_heif import register_heif_opener

    if "HEIF" not in Image.OPEN:
        register_heif_opener()
    return True


def _one_line(error: Exception) -> str:
    text = shown_name(" ".join(str(error).split())[:200])
    return text or type(error).__name__
