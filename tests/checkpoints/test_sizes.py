"""Every published size of the ViT families by its shapes alone: recognised, whole, with its heads, feature and pixels.

The tensors have no memory; what a size computes is the golden cases' and the small layouts' to prove.
"""

import re
from functools import cache

import layouts
import pytest
import timm
import torch

from ssl_kd.checkpoints.formats import Contents, recognise
from ssl_kd.checkpoints.loading import blueprint

MSN_NAMES = {"fc.fc1.weight": torch.ones(2, 2)}
DECODER = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(2, 2)}
MASK_HEAD = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer2.weight_g": torch.ones(2, 1)}
TO_HUGGING_FACE = [
    (r"^(cls_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
# size -> width, blocks, heads, patch, pixels, hidden units for each channel
SIZES = {
    "S/16": (384, 12, 6, 16, 224, 4.0),
    "S/8": (384, 12, 6, 8, 224, 4.0),
    "B/16": (768, 12, 12, 16, 224, 4.0),
    "B/8": (768, 12, 12, 8, 224, 4.0),
    "B/4": (768, 12, 12, 4, 224, 4.0),
    "L/16": (1024, 24, 16, 16, 224, 4.0),
    "L/7": (1024, 24, 16, 7, 224, 4.0),
    "H/14": (1280, 32, 16, 14, 224, 4.0),
    "H/16 at 448": (1280, 32, 16, 16, 448, 4.0),
    "g/16": (1408, 40, 16, 16, 224, 48 / 11),
}


@cache
def vit(size, token=True):
    width, depth, heads, patch, side, ratio = SIZES[size]
    bare = {} if token else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    given = {"img_size": side, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    with torch.device("meta"):
        made = timm.create_model("vit_base_patch16_224", num_classes=0, mlp_ratio=ratio, **given, **bare).state_dict()
    return {name: torch.ones(t.shape) if t.ndim < 2 else t for name, t in made.items()}


def wrapped(*arguments, prefix="module.", **beside):
    return layouts.prefixed({**vit(*arguments), **beside}, prefix)


def hugging_face(*arguments):
    parts = ("query", "key", "value")
    state = {}
    for name, tensor in vit(*arguments).items():
        if ".attn.qkv." in name:
            split = zip(parts, (torch.empty_like(piece) for piece in tensor.chunk(3)), strict=True)
            state |= {name.replace("attn.qkv", f"attention.attention.{part}"): piece for part, piece in split}
        else:
            state[name] = tensor
    return layouts.renamed(state, TO_HUGGING_FACE)


def timms(name):
    with torch.device("meta"):
        made = timm.create_model(name.partition(".")[0], num_classes=0).state_dict()
    return {key: torch.ones(t.shape) if t.ndim < 2 else t for key, t in made.items()}


def ibot(size):
    student, teacher = wrapped(size, prefix="module.backbone."), wrapped(size, prefix="backbone.")
    return {"student": student, "teacher": {**teacher, **MASK_HEAD}}


def msn(size):
    return {
        "encoder": wrapped(size, **MSN_NAMES),
        "target_encoder": wrapped(size, **MSN_NAMES),
        "prototypes": torch.ones(2),
    }


def ijepa(size):
    predictor = {"module.mask_token": torch.ones(1, 1, 8)}
    return {"encoder": wrapped(size, False), "predictor": predictor, "target_encoder": wrapped(size, False)}


CLS, PRENORM, MEAN = ("cls", "bicubic"), ("cls_prenorm", "bilinear"), ("avg", "bilinear")
# who: (sizes, what the file holds, its container, the config beside it, whose it is called, feature and interpolation)
FAMILIES = {
    "DINO": ("S/16 S/8 B/16 B/8", vit, "zip", None, "of unknown origin, read as DINO's", CLS),
    "iBOT": ("S/16 B/16 L/16", lambda s: {"state_dict": vit(s)}, "zip", None, "unknown origin, read as iBOT's", CLS),
    "iBOT, run": ("S/16 B/16 L/16", ibot, "zip", None, "^iBOT ViT", CLS),
    "MSN": ("S/16 B/16 L/16 B/4 L/7", msn, "zip", None, "^MSN ViT", PRENORM),
    "MAE": ("B/16 L/16 H/14", lambda s: {"model": vit(s)}, "zip", None, "of unknown origin, read as MAE's", CLS),
    "MAE, whole": ("B/16 L/16 H/14", lambda s: {"model": {**vit(s), **DECODER}}, "zip", None, "^MAE ViT", CLS),
    "I-JEPA": ("H/14 H/16_at_448 g/16", ijepa, "zip", None, "^I-JEPA ViT", MEAN),
    "transformers' MSN": (
        "S/16 B/16 L/16 B/4 L/7",
        hugging_face,
        "safetensors",
        "vit_msn",
        "^Hugging Face MSN ViT",
        ("cls", "bilinear"),
    ),
    "transformers' MAE": ("B/16 L/16 H/14", hugging_face, "zip", "vit_mae", "^Hugging Face MAE ViT", CLS),
    "transformers' I-JEPA": (
        "H/14 H/16_at_448 g/16",
        lambda s: hugging_face(s, False),
        "safetensors",
        "ijepa",
        "^Hugging Face I-JEPA ViT",
        MEAN,
    ),
}


def first_fast(groups):
    """Parameters of a test: the first of each group, and the others marked slow."""
    return [
        one if not i else pytest.param(*one, marks=pytest.mark.slow) for group in groups for i, one in enumerate(group)
    ]


CASES = first_fast(
    [(family, size.replace("_", " ")) for size in sizes.split()] for family, (sizes, *_) in FAMILIES.items()
)


def read(tree, container, config=None):
    file = Contents(tree, container, config=config or {})
    weights = recognise(file).convert(file)
    return weights, blueprint(weights)


@pytest.mark.parametrize(("family", "size"), CASES)
def test_every_published_size_is_known(family, size):
    _, make, container, kind, origin, (feature, interpolation) = FAMILIES[family]
    width, depth, heads, patch, side, _ = SIZES[size]
    weights, network = read(make(size), container, {"model_type": kind} if kind else None)
    assert re.search(origin, weights.origin)
    assert (weights.dim, weights.feature, weights.preprocessing.interpolation) == (width, feature, interpolation)
    assert weights.preprocessing.size == side
    blocks = network.backbone.blocks
    assert (len(blocks), blocks[0].attn.num_heads, network.backbone.patch_embed.patch_size) == (
        depth,
        heads,
        (patch, patch),
    )


# Those whose file tells no more than the shapes, as timm saves them: what the origin must say.
TIMMS = {
    "vit_*_dinov2.*": "^timm DINOv2 ViT",
    "vit_*.dino": "unknown origin, read as timm's DINO$",
    "vit_*_ijepa": "unknown origin, read as timm's I-JEPA$",
}
TIMM_CASES = first_fast(
    [(name, origin) for name in sorted(timm.list_pretrained(names), key=lambda name: "small" not in name)]
    for names, origin in TIMMS.items()
)


@pytest.mark.parametrize(("name", "origin"), TIMM_CASES)
def test_every_size_that_timm_publishes_has_timms_pixels(name, origin):
    published = timm.get_pretrained_cfg(name)
    weights, network = read(timms(name), "safetensors")
    assert re.search(origin, weights.origin)
    pixels = weights.preprocessing
    assert (pixels.size, pixels.interpolation) == (published.input_size[1], published.interpolation)
    assert (pixels.mean, pixels.std) == (published.mean, published.std)
    assert pixels.resize == int(pixels.size / published.crop_pct)
    with torch.device("meta"):
        made = timm.create_model(name.partition(".")[0], num_classes=0)
    assert network.backbone.blocks[0].attn.num_heads == made.blocks[0].attn.num_heads
    assert weights.feature == ("avg" if made.cls_token is None else "cls")
