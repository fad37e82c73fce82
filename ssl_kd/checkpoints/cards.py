"""What the cards of known networks say and their files do not: the feature, the pixels, what timm has to be told by hand.

Looked up on 2026-11-29. `source` says what was read; "quoted" means that the page itself could not be (most are gated), and that
several public projects which run the network agree on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ssl_kd.models.preprocessing import Preprocessing

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224, 224, 224, "bilinear")
XRAY = Preprocessing((0.5307, 0.5307, 0.5307), (0.2583, 0.2583, 0.2583), 518, 518, 518, "bicubic")
OPTIMUS = Preprocessing((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517), 224, 224, 224, "bicubic")
HIBOU = Preprocessing((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816), 224, 224, 224, "bicubic")
# What the card of UNI 2 passes to timm beside its SwiGLU layers, which are seen in the weights.
UNI2 = {"patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "reg_tokens": 8, "no_embed_class": True}
# How a card loads its own network: the first such line names it.
LOADED = re.compile(r"(?:from_pretrained\(\s*[\"']|hf[-_]hub:)([\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Card:
    """What a card says. Nothing given: the network's own feature, and the pixels that its files say."""

    source: str
    feature: str = ""
    pixels: Preprocessing | None = None  # where the files say none, or only mean and std
    args: Mapping[str, object] = field(default_factory=dict)  # of timm, where config.json does not say them


CARDS = {
    "microsoft/rad-dino": Card("preprocessor_config.json, quoted", pixels=XRAY),
    "kaiko-ai/midnight": Card("card, read", "cls_avg", HALF),
    "owkin/phikon": Card("preprocessor_config.json, read; feature quoted"),
    "owkin/phikon-v2": Card("card and preprocessor_config.json, both quoted"),
    "mahmoodlab/uni": Card("card and config.json, both quoted"),
    "mahmoodlab/uni2-h": Card("card, quoted; config.json not seen", args=UNI2),
    "paige-ai/virchow": Card("card, quoted", "cls_avg"),
    "paige-ai/virchow2": Card("card and config.json, both quoted", "cls_avg"),
    "bioptimus/h-optimus-0": Card("config.json, read; card quoted", pixels=OPTIMUS),
    "bioptimus/h-optimus-1": Card("card, quoted; config.json not seen", pixels=OPTIMUS),
    "bioptimus/h0-mini": Card("card, quoted; config.json not seen", pixels=OPTIMUS),
    "histai/hibou-b": Card("config.json, read; preprocessor_config.json quoted", pixels=HIBOU),
    "histai/hibou-l": Card("preprocessor_config.json, quoted", pixels=HIBOU),
}


def card_of(name: str) -> Card | None:
    """The row of ORG/NAME, however it is capitalised."""
    return CARDS.get(name.lower())


def loads_itself_as(readme: str) -> str:
    """ORG/NAME by which a README loads its own network, where that is a known one; nothing elsewhere."""
    found = LOADED.search(readme)
    return found[1] if found and card_of(found[1]) else ""
