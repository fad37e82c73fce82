"""Augmented views as a pure function of (image, sample index, view number, seed).

Nothing here draws from a global random state: every random number is a hash of (seed, index, view number,
draw), so a view can be cut again, years later or on another machine, and the teacher's outputs on it
can be stored and replayed. Cutting has two halves. `cut` works on one decoded image on the CPU (rotation,
crop, resize; uint8 out). `finish` works on a whole batch on any device (flip, colour, blur; [0, 1] out).

A *recipe* says how one view is made; a *scheme* is the tuple of recipes that one image gets per epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_kd.errors import UserError, one_of
from ssl_kd.registry import Registry
from ssl_kd.rng import uniform

# Rec. 601 luma, as Pillow and torchvision use for greyscale.
LUMA = (0.299, 0.587, 0.114)
LONG = 1 << 16  # pixels; of a longer picture the box is cut out before it is resized
BLUR_RADIUS = 6  # taps on each side: three sigma of the strongest blur


@dataclass(frozen=True)
class Recipe:
    """How one view is made. Probabilities are in [0, 1]; `scale` is a share of the image's area."""

    scale: tuple[float, float] | None = (0.2, 1.0)  # None: resize the shorter side, centre crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0  # probability of the colour jitter
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # in turns: 0.1 is 36 degrees
    grey: float = 0.0
    blur: float = 0.0  # sigma 0.1 to 2 pixels at 224, in proportion at other sizes
    quarter_turns: int = 0
    side: float = 1.0  # share of the run's side; smaller crops, which come last, are for the student only
    shared_flip: bool = False  # the views of one image and epoch flip together (DLKD's four rotations)


@dataclass(frozen=True)
class Transform(Recipe):
    """A view that anybody's function makes of an RGB picture: a PIL image, an array, or a tensor (3, S, S) or (H, W).

    The function may draw its own random numbers, so such a view cannot be made again and its target not be stored.
    Floating numbers are in [0, 1], and are rounded to 8 bits; nothing is normalised here, every Encoder does that.
    """

    flip: float = 0.0
    function: Callable[[Image.Image], object] = field(default=lambda image: image)

    def apply(self, image: Image.Image, size: int) -> np.ndarray:
        """The view, uint8 (size, size, 3). UserError for any other shape, or numbers outside their range."""
        out = self.function(image)
        if isinstance(out, Tensor):
            out = out.detach().cpu()
            out = (out.permute(1, 2, 0) if out.ndim == 3 else out).numpy()
        pixels = np.asarray(out.convert("RGB") if isinstance(out, Image.Image) else out)
        if pixels.shape != (size, size, 3) or pixels.dtype.kind not in "uf":
            raise UserError(
                f"views: {self.name} gives {pixels.dtype} {pixels.shape} of an image; expected a picture of "
                f"{size} x {size} px (uint8, or numbers in [0, 1]); resize in it, or set size"
            )
        if pixels.dtype != np.uint8:
            if not (0 <= pixels.min() and pixels.max() <= 1):
                raise UserError(
                    f"views: {self.name} gives numbers from {pixels.min():.3g} to {pixels.max():.3g}; expected [0, 1]: "
                    "leave its normalisation out, every network has its own"
                )
            pixels = np.rint(pixels * 255)
        return pixels.astype(np.uint8)

    @property
    def name(self) -> str:
        """What the function is called."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)


CENTRE = Recipe(scale=None, flip=0.0)
# SimReg's and MoCo v1's geometry: one random resized crop and a flip, no colour.
WEAK = Recipe()
# MoCo v2: crop, jitter 0.8 x (0.4, 0.4, 0.4, 0.1), greyscale 0.2, blur 0.5, flip.
STRONG = Recipe(jitter=0.8, grey=0.2, blur=0.5)
# On thumbnails (CIFAR) the usual self-supervised recipes leave the blur out.
STRONG_SMALL = replace(STRONG, blur=0.0)
# Short runs on images whose left and right matter (digits): milder crops, no mirror.
GENTLE = replace(STRONG_SMALL, scale=(0.4, 1.0), flip=0.0)
UPRIGHT = replace(WEAK, scale=(0.4, 1.0), flip=0.0)
ROT4 = tuple(Recipe(scale=(0.08, 1.0), quarter_turns=q, shared_flip=True) for q in range(4))

# Multi-crop: 96 px beside 224 px, 5 to 25 % of the area (SwAV's recipe, as SEED's small-crop variant takes it).
SMALL = Recipe(scale=(0.05, 0.25), side=96 / 224)

SCHEMES: Registry[tuple[Recipe, ...]] = Registry(
    "views",
    {
        "centre": (CENTRE,),
        "weak": (WEAK,),
        "strong": (STRONG,),
        "strong_small": (STRONG_SMALL,),
        "multi": (WEAK, STRONG),
        "multi_small": (WEAK, STRONG_SMALL),
        "rot4": ROT4,
        "multicrop": (WEAK, SMALL, SMALL, SMALL, SMALL),
        "multicrop_strong": (STRONG, STRONG, *(replace(STRONG, scale=SMALL.scale, side=SMALL.side),) * 4),
        "gentle": (GENTLE,),
        "upright": (UPRIGHT,),
        "two_gentle": (GENTLE, GENTLE),
        "two_strong": (STRONG, STRONG),
        "two_strong_small": (STRONG_SMALL, STRONG_SMALL),
    },
    group="ssl_kd.views",
)


def scheme(name: str) -> tuple[Recipe, ...]:
    """The recipes of a scheme by name; UserError with near names when there is none."""
    return SCHEMES[one_of("views", name, SCHEMES)]


# ------------------------------------------------------------------------------------------- random numbers


# One number per decision, so that adding a decision never shifts the others.
_FLIP, _AREA, _RATIO, _TOP, _LEFT, _JITTER, _BRIGHT, _CONTRAST, _SATURATION, _HUE, _GREY, _BLUR, _SIGMA = range(13)


# ------------------------------------------------------------------------------------------- one image: crop

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def crop_box(width: int, height: int, recipe: Recipe, seed: int, index: int, view: int) -> Box:
    """The (left, top, right, bottom) in pixels that `cut` resizes to the view's square.

    A random area and log-uniform aspect ratio as in Inception crops; a box that would leave the image is
    shrunk to fit (the common code draws ten times and then falls back to the centre).
    """
    if recipe.scale is None:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
    u = [float(uniform(seed, index, view, d)) for d in (_AREA, _RATIO, _TOP, _LEFT)]
    area = width * height * (recipe.scale[0] + u[0] * (recipe.scale[1] - recipe.scale[0]))
    low, high = np.log(recipe.ratio[0]), np.log(recipe.ratio[1])
    ratio = float(np.exp(low + u[1] * (high - low)))
    w = min(max((area * ratio) ** 0.5, 1.0), width)
    h = min(max((area / ratio) ** 0.5, 1.0), height)
    left, top = u[3] * (width - w), u[2] * (height - h)
    return left, top, left + w, top + h


def cut(image: Image.Image, recipe: Recipe, size: int, seed: int, index: int, view: int) -> np.ndarray:
    """Rotate, crop and resize one RGB image: uint8 (size, size, 3). The flip comes later, in `finish`."""
    if isinstance(recipe, Transform):
        return recipe.apply(image, size)
    box = crop_box(*image.size, recipe, seed, index, view)
    if max(image.size) > LONG:
        image, box = _around(image, box)
    out = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    # Turning the square afterwards equals turning the image first with the box turned along.
    return np.rot90(np.asarray(out), recipe.quarter_turns)


def _around(image: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """The whole pixels that a box touches, and the box in them: Pillow holds a box in float32, too coarse far out."""
    left, top = int(box[0]), int(box[1])
    right, bottom = min(ceil(box[2]), image.width), min(ceil(box[3]), image.height)
    part = image.crop((left, top, right, bottom))
    inside = (box[0] - left, box[1] - top, min(box[2] - left, part.width), min(box[3] - top, part.height))
    return part, inside


# ---------------------------------------------------------------------------------- a batch: flip and colour


def finish(pixels: Tensor, recipe: Recipe, seed: int, index: np.ndarray, view: int, number: int) -> Tensor:
    """Flip, colour and blur a batch: uint8 (B, 3, S, S) -> float32 in [0, 1], on the device of `pixels`.

    `view` counts all views of an image over the epochs; `number` counts epochs (for flips shared by an image's views).
    """

    def u(draw: int) -> Tensor:
        return torch.from_numpy(uniform(seed, index, view, draw)).to(pixels.device, torch.float32)

    if recipe.flip:
        if recipe.shared_flip:
            drawn = torch.from_numpy(uniform(seed ^ 0x5F11, index, number, _FLIP)).to(pixels.device, torch.float32)
        else:
            drawn = u(_FLIP)
        pixels = torch.where((drawn < recipe.flip)[:, None, None, None], pixels.flip(-1), pixels)
    x = pixels.float().div_(255)
    if recipe.jitter or recipe.grey:
        x = _colour(x, recipe, u)
    if recipe.blur:
        x = _blur(x, u(_BLUR) < recipe.blur, u(_SIGMA))
    return x


def _colour(x: Tensor, recipe: Recipe, u: Callable[[int], Tensor]) -> Tensor:
    """One affine map of RGB per sample: brightness, contrast, saturation, hue, greyscale, in this order.

    All five are linear in the pixel (the hue turns about the grey axis), so they collapse into one 3 x 3 matrix and
    one offset. Differs from torchvision: fixed order, clipped once at the end, hue turned in RGB and not in HSV.
    """
    luma = x.new_tensor(LUMA)
    eye = torch.eye(3, device=x.device).expand(len(x), 3, 3)
    grey = luma.expand(3, 3)  # every output channel is the luma

    def spread(draw: int, width: float) -> Tensor:
        factor: Tensor = (1 + (2 * u(draw) - 1) * width)[:, None, None]
        return factor

    bright = spread(_BRIGHT, recipe.brightness)
    contrast = spread(_CONTRAST, recipe.contrast)
    saturation = spread(_SATURATION, recipe.saturation)
    matrix = (saturation * eye + (1 - saturation) * grey) @ (contrast * bright * eye)
    matrix = _hue_turn((2 * u(_HUE) - 1) * recipe.hue) @ matrix
    # Contrast pulls towards the mean luma of the (brightened) image; grey levels pass saturation and hue unchanged.
    mean = (x.mean((2, 3)) @ luma)[:, None, None] * bright
    offset = ((1 - contrast) * mean).expand(len(x), 3, 1)
    keep = (u(_JITTER) >= recipe.jitter)[:, None, None]
    matrix = torch.where(keep, eye, matrix)
    offset = torch.where(keep, torch.zeros_like(offset), offset)
    to_grey = (u(_GREY) < recipe.grey)[:, None, None]
    matrix = torch.where(to_grey, grey @ matrix, matrix)
    out = torch.baddbmm(offset, matrix, x.flatten(2)).clamp_(0, 1)
    return out.view_as(x)


def _hue_turn(turns: Tensor) -> Tensor:
    """Rotation of RGB about the grey axis by `turns` (1 is a full circle): (B, 3, 3)."""
    angle = turns * (2 * np.pi)
    c, s = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    third = torch.full((3, 3), 1 / 3, device=turns.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=turns.device) / 3**0.5
    return c * torch.eye(3, device=turns.device) + (1 - c) * third + s * cross


def _blur(x: Tensor, chosen: Tensor, u: Tensor) -> Tensor:
    """Separable Gaussian blur of the chosen samples, sigma from 0.1 to 2 pixels per 224 of width."""
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return x
    picked = x[rows]
    sigma = (0.1 + 1.9 * u[rows]) * max(x.shape[-1] / 224, 0.25)
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    n, _, h, w = picked.shape
    flat = picked.reshape(1, n * 3, h, w)
    padded = torch.nn.functional.pad(flat, (BLUR_RADIUS,) * 4, mode="replicate")
    flat = torch.nn.functional.conv2d(padded, kernel[:, None, None, :], groups=n * 3)
    flat = torch.nn.functional.conv2d(flat, kernel[:, None, :, None], groups=n * 3)
    out = x.clone()
    out[rows] = flat.view_as(picked)
    return out
