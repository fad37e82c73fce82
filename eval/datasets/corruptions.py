"""Corrupted test images: the same pictures under noise, blur, bad light, compression or missing parts.

    tasks: [{path: data/flowers.zip}, {path: data/flowers.zip, corrupt: blur, severity: 3}]

Train images stay clean, so the figure says what the representation loses on worse pictures. The damage to picture i
depends on its number, kind and severity only, so every encoder sees the same ones. Kinds and steps are in the spirit of
Hendrycks & Dietterich 2019 (ImageNet-C), scaled to the picture's size; they are not theirs to the last constant.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ssl_kd.data.sources.base import ImageSource, content_key
from ssl_kd.errors import UserError, nearest

Picture = Image.Image
REFERENCE = 224  # pixels of the shorter side for which blur and occlusion are stated


def _noise(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    pixels = np.asarray(picture, np.float32)
    return Image.fromarray((pixels + rng.normal(0, 255 * strength, pixels.shape)).clip(0, 255).astype(np.uint8))


def _blur(picture: Picture, radius: float, rng: np.random.Generator) -> Picture:
    return picture.filter(ImageFilter.GaussianBlur(radius * min(picture.size) / REFERENCE))


def _brightness(picture: Picture, factor: float, rng: np.random.Generator) -> Picture:
    return ImageEnhance.Brightness(picture).enhance(factor)


def _contrast(picture: Picture, factor: float, rng: np.random.Generator) -> Picture:
    return ImageEnhance.Contrast(picture).enhance(factor)


def _grey(picture: Picture, colour: float, rng: np.random.Generator) -> Picture:
    return ImageEnhance.Color(picture).enhance(colour)


def _jpeg(picture: Picture, quality: float, rng: np.random.Generator) -> Picture:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=int(quality))
    return Image.open(stream).convert("RGB")


def _pixelate(picture: Picture, share: float, rng: np.random.Generator) -> Picture:
    small = tuple(max(1, round(side * share)) for side in picture.size)
    return picture.resize((small[0], small[1]), Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)


def _occlude(picture: Picture, share: float, rng: np.random.Generator) -> Picture:
    """Paint a grey rectangle of the picture's own shape over a random place."""
    width, height = (max(1, round(side * share**0.5)) for side in picture.size)
    left, top = (
        int(rng.integers(0, side - part + 1)) for side, part in zip(picture.size, (width, height), strict=True)
    )
    covered = picture.copy()
    covered.paste((128, 128, 128), (left, top, left + width, top + height))
    return covered


def _scramble(picture: Picture, tiles: float, rng: np.random.Generator) -> Picture:
    """Cut the picture into tiles x tiles parts and put them together in another order: nothing is left but texture."""
    width, height = (max(1, side // int(tiles)) for side in picture.size)
    places = [(x * width, y * height) for y in range(int(tiles)) for x in range(int(tiles))]
    mixed = picture.copy()
    for to, start in enumerate(rng.permutation(len(places)).tolist()):
        left, top = places[start]
        mixed.paste(picture.crop((left, top, left + width, top + height)), places[to])
    return mixed


CORRUPTIONS: dict[str, tuple[Callable[[Picture, float, np.random.Generator], Picture], tuple[float, ...]]] = {
    "noise": (_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),  # standard deviation, of 1
    "blur": (_blur, (1, 2, 3, 4, 6)),  # pixels at 224
    "dark": (_brightness, (0.8, 0.6, 0.45, 0.3, 0.2)),
    "bright": (_brightness, (1.2, 1.5, 1.8, 2.2, 2.7)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "grey": (_grey, (0.6, 0.4, 0.2, 0.1, 0.0)),  # colour left
    "jpeg": (_jpeg, (40, 25, 18, 12, 7)),  # quality
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),  # resolution left
    "occlude": (_occlude, (0.05, 0.1, 0.2, 0.3, 0.4)),  # area covered
    "scramble": (_scramble, (2, 3, 4, 6, 8)),  # tiles along a side
}


class Corrupted(ImageSource):
    """The pictures of `images` after a corruption of severity 1 to 5."""

    def __init__(self, images: ImageSource, kind: str, severity: int = 3):
        if kind not in CORRUPTIONS:
            known = list(CORRUPTIONS)
            raise UserError(f"no corruption {kind!r}; known: {', '.join(known)}.{nearest(kind, known)}")
        if severity not in range(1, 6):
            raise UserError(f"corrupt {kind}: severity is 1 to 5, got {severity}")
        self.images, self.kind, self.severity = images, kind, severity
        super().__init__(f"{images.name} ({kind} {severity})", images.ids, images.max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Picture:
        run, strengths = CORRUPTIONS[self.kind]
        rng = np.random.default_rng([i, self.severity, *self.kind.encode()])
        return run(self.images._load(i, shorter), strengths[self.severity - 1], rng)

    def _identity(self) -> Iterator[bytes]:
        run, strengths = CORRUPTIONS[self.kind]
        yield f"{content_key(self.images)} {self.kind} {run.__name__} {strengths[self.severity - 1]}".encode()

    def _content(self, full: bool) -> Iterator[bytes]:
        """As the pictures behind it; what is done to them is in the digest."""
        yield (self.images.full_digest if full else self.images.content_digest).encode()
