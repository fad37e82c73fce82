"""The last resort: one ResNet or ViT in a file that no format claims. It is read, and said to be of unknown origin.

Where a file holds two (student and teacher, query and key), which one its authors evaluate is not for us to guess.
"""

from __future__ import annotations

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.dino import BICUBIC
from ssl_kd.checkpoints.formats.weights import (
    Contents,
    Format,
    Place,
    State,
    Weights,
    anywhere,
    backbones,
    drop,
    must,
    shown,
)

BESIDE = ("fc.", "head.")  # classifiers and projectors inside the network


def lone_resnet(file: Contents) -> Place | None:
    """The only network in the file, a ResNet."""
    return anywhere(file, resnets.is_resnet) if len(list(backbones(file))) == 1 or file.vouched else None


def lone_vit(file: Contents) -> Place | None:
    """The only network in the file, a ViT with a class token and without decoder or mask token."""
    return anywhere(file, is_readable) if len(list(backbones(file))) == 1 or file.vouched else None


def is_readable(state: State) -> bool:
    """A plain ViT but for a head."""
    return vits.is_plain(drop(state, BESIDE))


def convert_resnet(file: Contents) -> Weights:
    """With the preprocessing of torchvision, which most labs use for ResNets."""
    place = must(lone_resnet(file), "a ResNet")
    return resnets.read_at(file, place, "torchvision", resnets.IMAGENET, BESIDE, sure=False)


def convert_vit(file: Contents) -> Weights:
    """With the preprocessing and the interpolation of DINO."""
    place = must(lone_vit(file), "a ViT")
    return vits.read(file, place, "DINO", BICUBIC, False, BESIDE, positions="offset")


def places(file: Contents) -> str:
    """The networks that lie in a file, for the message that refuses it; empty where there are none."""
    lying = list(backbones(file))
    found = [
        f"a {'ResNet' if resnets.is_resnet(place.state) else 'ViT'} under `{shown([place.where])}`" for place in lying
    ]
    if not found:
        return ""
    below = next((place.where for place in lying if place.path or place.prefix), "")
    named = f"Name one by branch (--branch {shown([below])}). " if below else ""
    return f"It holds {', '.join(found[:4])}{', ...' if len(found) > 4 else ''}. {named}"


RESNET = Format(
    "resnet",
    "unknown",
    "a file with one torchvision-named ResNet that nothing above claims",
    "pooled map",
    resnets.IMAGENET,
    lambda file: lone_resnet(file) is not None,
    convert_resnet,
)
VIT = Format(
    "vit",
    "unknown",
    "a file with one ViT in DINO's and timm's names that nothing above claims",
    "class token",
    BICUBIC,
    lambda file: lone_vit(file) is not None,
    convert_vit,
)
