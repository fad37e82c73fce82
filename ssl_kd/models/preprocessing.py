"""What a network expects of its pixels: size, resize, crop, interpolation, mean and standard deviation."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssl_kd.errors import UserError, nearest, one_line

if TYPE_CHECKING:
    from PIL import Image


IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


MAX_SIDE = 2**16  # Pillow and the networks give up long before


LARGEST = 1.0  # of a mean or a standard deviation of pixels in [0, 1]


# A picture that is longer than THIN times its width, and has MANY pixels when it is resized, is cropped first.
THIN = 4
MANY = 1 << 24
REACH = 4  # pixels, of the coarser of both grids, that the widest filter (lanczos) looks beyond the crop


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see. Called on a PIL image it resizes and crops: uint8 (3, H, W), not normalised.

    `size` is the side in pixels that the network receives, `resize` the shorter side before the centre crop of side
    `crop`; None means that the lab did neither, because its images had that size already. Images of another size are then
    brought to `size` all the same. `square`: both sides become `resize`, so that no image keeps its shape and all of it
    is seen. mean and std are for pixels in [0, 1]; zeros and ones where the lab used none.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    size: int = 224
    resize: int | None = 256
    crop: int | None = 224
    interpolation: str = "bilinear"
    square: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}."
                f"{nearest(self.interpolation, INTERPOLATIONS)}"
            )
        colours = (*self.mean, *self.std)
        numbers = len(colours) == 6 and all(isinstance(c, (int, float)) and abs(c) <= LARGEST for c in colours)
        if not numbers or min(self.std) <= 0:
            given = one_line((self.mean, self.std), 150)
            raise UserError(
                f"mean and std need three numbers each, for pixels in [0, 1] (divide those for 0 to 255 by 255), std above zero; "
                f"got {given}"
            )
        sides = (self.size, self.size if self.resize is None else self.resize, self.crop or self.size)
        if not all(isinstance(side, int) and 0 < side < MAX_SIDE for side in sides):
            given = one_line((self.size, self.resize, self.crop), 200)
            raise UserError(f"size, resize and crop are pixels above zero; got {given}")
        if not isinstance(self.square, bool):
            raise UserError(f"square: expected true or false, got {one_line(self.square)}")

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize the shorter side and cut the centre square, as torchvision does on PIL images: uint8 (3, S, S)."""
        from PIL import Image

        image = image if image.mode == "RGB" else image.convert("RGB")
        side, (width, height) = self.resize or self.size, image.size
        if self.square:
            image = image.resize((side, side), Image.Resampling[self.interpolation.upper()])
        elif min(width, height) != side:
            wide = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
            how = Image.Resampling[self.interpolation.upper()]
            if wide[0] * wide[1] > MANY and max(wide) > THIN * max(side, self.crop or self.size):
                image = _middle_resized(image, wide, self.crop or self.size, how)
            else:
                image = image.resize(wide, how)
        crop, (width, height) = self.crop or self.size, image.size
        if (width, height) != (crop, crop):
            left, top = round((width - crop) / 2), round((height - crop) / 2)
            image = image.crop((left, top, left + crop, top + crop))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def key(self) -> str:
        """What decides the pixels, for the keys of caches. Written out, so that no renaming makes old answers new."""
        names = ("mean", "std", "size", "resize", "crop", "interpolation", *(["square"] if self.square else []))
        return f"Preprocessing({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @classmethod
    def from_key(cls, key: str) -> Preprocessing:
        """The inverse of `key`. ValueError for anything else."""
        try:
            call = ast.parse(key, mode="eval").body
            given = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}  # type: ignore[attr-defined]
            return cls.from_dict(given)
        except (SyntaxError, AttributeError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{one_line(key)} are no pixels") from error

    def __str__(self) -> str:
        """What is done to a picture, in words."""
        plain = (*self.mean, *self.std) == (0, 0, 0, 1, 1, 1)
        colour = "plain [0, 1]" if plain else f"mean {_joined(self.mean)}, std {_joined(self.std)}"
        side = self.resize or self.size
        resize = f"resize to a square of {side}" if self.square else f"resize the shorter side to {side}"
        crop = self.crop or self.size
        cut = "" if self.square and crop == side else f", centre crop {crop}"
        return f"{colour}; {resize}{cut}, {self.interpolation}; {self.size} px"

    @property
    def crop_ratio(self) -> float:
        """crop/resize: 1.0 takes the whole image."""
        return (self.crop or self.size) / (self.resize or self.size)

    def at(self, size: int, crop_ratio: float | None = None) -> Preprocessing:
        """The same at another size. crop_ratio: None keeps it, 1.0 takes the whole image."""
        ratio = self.crop_ratio if crop_ratio is None else crop_ratio
        return replace(self, size=size, resize=max(size, round(size / ratio)), crop=size)

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> Preprocessing:
        """The inverse of dataclasses.asdict, also after a journey through JSON."""
        fields: dict[str, object] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        make: Callable[..., Preprocessing] = cls
        return make(**fields)


def _several(given: object) -> tuple[float, ...]:
    if not isinstance(given, Iterable):
        raise TypeError(f"{given!r} is not iterable")
    return tuple(given)


def timm_pixels(config: Mapping[str, object]) -> Preprocessing:
    """What a `pretrained_cfg` of timm says, as timm's own evaluation transform does it. UserError for what is not said."""
    crop_mode = config.get("crop_mode") or "center"
    if crop_mode not in ("center", "squash"):
        raise UserError(
            f"crop_mode: expected center or squash, got {one_line(crop_mode)}: such pixels are not made here"
        )
    try:
        channels, *_, size = (int(side) for side in _several(config["input_size"]))
        mean, std = _several(config["mean"]), _several(config["std"])
        share = config.get("crop_pct") or 0.875
        if not isinstance(share, str | float | int):
            raise TypeError(f"crop_pct is {share!r}")
        resize = math.floor(size / float(share))
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise UserError(
            f"pretrained_cfg: its input_size, mean, std or crop_pct cannot be used: {error!r:.80}"
        ) from error
    if channels != 3:
        raise UserError(f"input_size: the network takes {channels} channels, and images have three: not read here")
    how = str(config.get("interpolation") or "bicubic")
    how = "bicubic" if how == "random" else how
    return Preprocessing(mean, std, size, resize, size, how, square=crop_mode == "squash")  # type: ignore[arg-type]


def _joined(numbers: Iterable[float]) -> str:
    return "/".join(f"{number:g}" for number in numbers)


def _middle_resized(image: Image.Image, wide: tuple[int, int], crop: int, how: Image.Resampling) -> Image.Image:
    """What `image.resize(wide)` shows in its middle `crop` pixels along the longer side. The whole is never made."""
    along = 0 if image.width > image.height else 1
    first = round((wide[along] - crop) / 2)
    scale = image.size[along] / wide[along]  # pixels of the picture for one of the result
    begin, end = first * scale, (first + crop) * scale
    reach = REACH * max(1.0, scale)
    cut, stop = max(math.floor(begin - reach), 0), min(math.ceil(end + reach), image.size[along])
    part, box, sides = [0, 0, *image.size], [0.0, 0.0, *map(float, image.size)], list(wide)
    part[along], part[along + 2] = cut, stop
    # Pillow holds a box in float32: exact near the part's own begin, not a million pixels out.
    box[along], box[along + 2], sides[along] = begin - cut, min(end - cut, float(stop - cut)), crop
    middle = image.crop((part[0], part[1], part[2], part[3]))
    return middle.resize((sides[0], sides[1]), how, box=(box[0], box[1], box[2], box[3]))
