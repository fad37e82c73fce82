"""The table of checkpoint formats, and `recognise`, which demands exactly one claim.

A new format is one file with a `Format` in it, and one row here.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_kd.checkpoints.formats.dino import DINO_FULL, DINO_RESNET, DINO_VIT, DINO_XCIT
from ssl_kd.checkpoints.formats.dinov2 import DINOV2, DINOV2_TRAIN
from ssl_kd.checkpoints.formats.dinov3 import DINOV3, DINOV3_SAT, HF_DINOV3, TIMM_DINOV3
from ssl_kd.checkpoints.formats.huggingface import HF_DINO, HF_DINOV2, HF_IJEPA, HF_MAE, HF_MSN
from ssl_kd.checkpoints.formats.lightning import LIGHTLY, SOLO
from ssl_kd.checkpoints.formats.masked import IBOT, IJEPA, MAE, MSN
from ssl_kd.checkpoints.formats.moco import MOCO, MOCO_V3
from ssl_kd.checkpoints.formats.openmmlab import MM, OPENSELFSUP
from ssl_kd.checkpoints.formats.plain import IMAGENET_EXAMPLE, TIMM_VIT, TORCHVISION_RESNETS, TORCHVISION_VITS
from ssl_kd.checkpoints.formats.siamese import BARLOW, BYOL, SIMSIAM, VICREG
from ssl_kd.checkpoints.formats.simclr import SIMCLR_V1, SIMCLR_V2, SPIJKERVET, STHALLES
from ssl_kd.checkpoints.formats.student import STUDENT, refuse_module, refuse_state
from ssl_kd.checkpoints.formats.swav import SWAV, VISSL
from ssl_kd.checkpoints.formats.unknown import RESNET, VIT, places
from ssl_kd.checkpoints.formats.weights import Contents, Format, Weights, shown
from ssl_kd.errors import UnknownCheckpoint
from ssl_kd.registry import Registry

__all__ = ["FORMATS", "Contents", "Format", "Weights", "recognise"]

# Asked only where no other row claims a file; among the others they stand for those who name them.
LAST = {row.name: row for row in (RESNET, VIT)}


def last(row: Format) -> Format:
    """The row, which claims nothing by itself."""
    return replace(row, matches=lambda file: file.vouched and row.matches(file))


ROWS = (
    DINO_VIT,
    DINO_XCIT,
    DINO_RESNET,
    DINO_FULL,
    DINOV2,
    DINOV2_TRAIN,
    DINOV3,
    DINOV3_SAT,
    IBOT,
    MSN,
    MAE,
    IJEPA,
    MOCO,
    MOCO_V3,
    SIMSIAM,
    BARLOW,
    VICREG,
    BYOL,
    SWAV,
    VISSL,
    SIMCLR_V1,
    SIMCLR_V2,
    SPIJKERVET,
    STHALLES,
    LIGHTLY,
    SOLO,
    MM,
    OPENSELFSUP,
    HF_DINO,
    HF_DINOV2,
    HF_MSN,
    HF_MAE,
    HF_IJEPA,
    HF_DINOV3,
    TIMM_VIT,
    TIMM_DINOV3,
    TORCHVISION_VITS,
    TORCHVISION_RESNETS,
    IMAGENET_EXAMPLE,
    STUDENT,
    last(RESNET),
    last(VIT),
)
FORMATS: Registry[Format] = Registry(
    "formats", {row.name: row for row in ROWS}, group="ssl_kd.formats", kind=Format, named=True
)


def recognise(file: Contents, name: str | None = None) -> Format:
    """The one format that claims the file, or the named one; UnknownCheckpoint says what was seen."""
    if name is not None:
        if not FORMATS[name].matches(replace(file, reading=False, vouched=True)):
            raise UnknownCheckpoint(
                f"is not laid out as {name}, which is: {FORMATS[name].wrote}. {places(file)}"
                "format=resnet and format=vit read a network wherever it lies."
            )
        return FORMATS[name]
    refuse_module(file)  # however much its tensors look like those of a lab
    refuse_state(file)
    file = file.without_values()
    # Our own record in the header is conclusive: a student's weights may look like anybody's.
    claims = [STUDENT] if STUDENT.matches(file) else [row for row in FORMATS.values() if row.matches(file)]
    claims = claims or [FORMATS[name] for name, row in LAST.items() if row.matches(file)]
    if len(claims) == 1:
        return claims[0]
    if claims:
        names = ", ".join(row.name for row in claims)
        raise UnknownCheckpoint(f"{len(claims)} formats claim it: {names}. Pass format= with one of them.")
    seen = list(file.tensors())
    raise UnknownCheckpoint(
        f"no known teacher format among {len(seen)} tensors. First keys: {shown(seen, 6) or 'none'}. {places(file)}"
        "If you know what it is, pass format= with a name of docs/formats.md, such as moco, resnet or vit."
    )
