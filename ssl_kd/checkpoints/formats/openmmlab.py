"""OpenMMLab: mmselfsup and mmpretrain checkpoints, and OpenSelfSup's extracted backbones.

Their mean and std are for pixels in 0..255 and are ImageNet's. Only MoCo v3's ViTs are known: nothing in a ViT of
another method says how many heads it has, so without a trace of MoCo v3 the file is left alone.
"""

from __future__ import annotations

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.moco import read_v3_vit
from ssl_kd.checkpoints.formats.weights import Contents, Format, Rules, State, Weights, rename, select

VIT_RULES: Rules = {
    r"^patch_embed\.projection\.": "patch_embed.proj.",
    r"^ln1\.": "norm.",
    r"^layers\.(\d+)\.ln1\.": r"blocks.\1.norm1.",
    r"^layers\.(\d+)\.ln2\.": r"blocks.\1.norm2.",
    r"^layers\.(\d+)\.ffn\.layers\.0\.0\.": r"blocks.\1.mlp.fc1.",
    r"^layers\.(\d+)\.ffn\.layers\.1\.": r"blocks.\1.mlp.fc2.",
    r"^layers\.(\d+)\.attn\.": r"blocks.\1.attn.",
}


def backbone(file: Contents) -> State:
    """The backbone of a file with OpenMMLab's meta block."""
    return select(file.state("state_dict"), "backbone.") if isinstance(file.at("meta"), dict) else {}


def moco_v3_vit(file: Contents) -> State:
    """The backbone in timm's names where it is a ViT and something says MoCo v3."""
    state = file.state("state_dict")
    trace = any(name.startswith(("momentum_encoder.", "head.predictor.")) for name in state)
    config = file.at("meta", "config") or file.at("meta", "cfg")
    if not trace and not (isinstance(config, str) and "MoCoV3" in config):
        return {}
    given = backbone(file)
    return rename(given, VIT_RULES) if "patch_embed.projection.weight" in given else {}


def convert_mm(file: Contents) -> Weights:
    """The backbone, ViT or ResNet."""
    if state := moco_v3_vit(file):
        return read_v3_vit(state, backbone(file), "state_dict/backbone.", "")
    return resnets.read_resnet(file, "mmselfsup", resnets.IMAGENET, ["state_dict"], "backbone.", ["fc."])


def matches_openselfsup(file: Contents) -> bool:
    """A ResNet without prefix and without any head, one level down."""
    state = file.state("state_dict")
    return resnets.is_bare(state)


MM = Format(
    "mm",
    "openmmlab",
    "mmselfsup and mmpretrain: ResNets of any method, ViTs of MoCo v3",
    "backbone; class token or pooled map",
    resnets.IMAGENET,
    lambda file: resnets.is_resnet(backbone(file)) or vits.is_vit(moco_v3_vit(file)),
    convert_mm,
)
OPENSELFSUP = Format(
    "openselfsup",
    "openmmlab",
    "OpenSelfSup backbones: a bare ResNet under `state_dict`",
    "pooled map",
    resnets.IMAGENET,
    matches_openselfsup,
    lambda file: resnets.read_resnet(file, "OpenSelfSup", resnets.IMAGENET, ["state_dict"], sure=False),
)
