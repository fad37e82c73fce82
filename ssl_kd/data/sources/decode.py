"""Encoded bytes -> an upright 8-bit RGB picture, or one reason why not.

Every rule about file formats, colour modes and damage lives here, so that a folder, an archive and a data set give
the same pixels for the same file. Only the formats in FORMATS are tried: Pillow also knows some that start other
programs (EPS runs Ghostscript), and a file name says nothing about its content.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
JPEG_NAMES = (".jpg", ".jpeg", ".jpe", ".jfif")
EXTENSIONS = (*JPEG_NAMES, ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
MAX_PIXELS = 89_478_485  # Pillow's own line between a large picture and a decompression bomb: 256 MiB of RGB
MAX_BYTES = 1 << 30  # of one encoded file; no picture below MAX_PIXELS needs more
ORIENTED_BY = ("exif", "xmp")


class UnreadableError(Exception):
    """One picture that cannot be had; the message is the reason, without the picture's name."""


def decode(data: bytes, shorter: int | None = None) -> Image.Image:
    """Return the picture in `data` as upright RGB; the first frame or page where there are several.

    shorter: a hint that the shorter side will be resized to this many pixels or fewer. A large JPEG is then decoded at
    a half, a quarter or an eighth of its size, never below the hint: faster, with slightly other pixels.
    Raises UnreadableError for empty, truncated, damaged, unknown and oversized data.
    """
    if not data:
        raise UnreadableError("empty file (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_pixels(image)
            if shorter:
                image.draft(None, (shorter, shorter))  # type: ignore[arg-type]  # None keeps the colour mode
            image.load()
            return to_rgb(upright(image))
    except UnreadableError:
        raise
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


def to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB: transparent parts over white (as a page shows them), 16-bit samples by their upper byte.

    Raises UnreadableError for floating-point samples, which have no agreed range.
    """
    if image.mode == "F":
        raise UnreadableError("floating-point samples have no agreed range; save the picture with 8 or 16 bits")
    if image.mode.startswith("I"):
        samples = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(samples.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
