# fmt: off
# ruff: noqa: E501 - a row of a table stays on one line
"""More families of the zoo: DINOv3, iBOT, MSN, MAE, I-JEPA, SimSiam, Barlow Twins, VICReg and BYOL.

Every figure stands on the page named as `source`; what nobody publishes there is None. Where a page gives ImageNet's ReaL
labels instead of its own, the figure is in the note: it is another measure.
"""

from __future__ import annotations

from ssl_kd.checkpoints.zoo_entry import APACHE, DINOV3, META, MIT, NC, Entry


def _dinov3() -> list[Entry]:
    source = "https://github.com/facebookresearch/dinov3/blob/main/MODEL_CARD.md"
    rows = [  # name, network, width, parameters, weights, first digits of the sha256, ReaL top-1
        ("vits16", "ViT-S/16", 384, 21, "lvd1689m", "08c60483", "87.0"),
        ("vits16plus", "ViT-S+/16", 384, 29, "lvd1689m", "4057cbaa", "88.0"),
        ("vitb16", "ViT-B/16", 768, 86, "lvd1689m", "73cec8be", "89.3"),
        ("vitl16", "ViT-L/16", 1024, 300, "lvd1689m", "8aa4cbdd", "90.2"),
        ("vith16plus", "ViT-H+/16", 1280, 840, "lvd1689m", "7c1da9a5", "90.3"),
        ("vit7b16", "ViT-7B/16", 4096, 6716, "lvd1689m", "a955f4ea", "90.4"),
        ("vitl16_sat", "ViT-L/16, satellite", 1024, 300, "sat493m", "eadcf0ff", ""),
        ("vit7b16_sat", "ViT-7B/16, satellite", 4096, 6716, "sat493m", "a6675841", ""),
        ("convnext_tiny", "ConvNeXt-T", 768, 29, "lvd1689m", "21b726bb", "86.6 at 256 px, 87.7 at 512 px"),
        ("convnext_small", "ConvNeXt-S", 768, 50, "lvd1689m", "296db49d", "87.9 at 256 px, 88.7 at 512 px"),
        ("convnext_base", "ConvNeXt-B", 1024, 89, "lvd1689m", "801f2ba9", "88.5 at 256 px, 89.2 at 512 px"),
        ("convnext_large", "ConvNeXt-L", 1536, 198, "lvd1689m", "61fa432d", "88.9 at 256 px, 89.4 at 512 px"),
    ]
    made = []
    for name, network, width, millions, data, digits, real in rows:
        arch = name.removesuffix("_sat")
        hub = f"facebook/dinov3-{arch.replace('_', '-')}-pretrain-{data}"
        scored = f" Linear probe on ImageNet's ReaL labels: {real}." if real else ""
        made.append(
            Entry(
                f"dinov3_{name}", "DINOv3", network, width, f"dinov3_{arch}_pretrain_{data}-{digits}.pth", None, DINOV3,
                source, millions, sha256=digits, aliases=(hub,), format="dinov3_sat" if data == "sat493m" else "",
                note=(
                    "Gated: accept the licence at https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/ (an e-mail "
                    f"with addresses follows), or at https://huggingface.co/{hub} and give the teacher as hf-hub:{hub}."
                    f"{scored} The file's name ends in the first 8 digits of its sha256"
                ),
            )
        )
    return made


def _ibot() -> list[Entry]:
    base = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
    rows = [  # name, network, width, folder, branch in the file's name, parameters, k-NN, linear
        ("vits16", "ViT-S/16", 384, "vits_16", "teacher", 21, 75.2, 77.9),
        ("vitb16", "ViT-B/16", 768, "vitb_16", "teacher", 85, 77.1, 79.5),
        ("vitb16_rand", "ViT-B/16", 768, "vitb_16_rand_mask", "teacher", 85, 77.3, 79.8),
        ("vitl16", "ViT-L/16", 1024, "vitl_16", "teacher", 307, 78.0, 81.0),
        ("vitl16_rand", "ViT-L/16", 1024, "vitl_16_rand_mask", "teacher", 307, 77.7, 81.3),
        ("vitb16_22k", "ViT-B/16", 768, "vitb_16_pt22k", "student", 85, 71.1, 79.0),
        ("vitl16_22k", "ViT-L/16", 1024, "vitl_16_pt22k", "student", 307, 72.9, 82.3),
    ]
    trained = {"rand": "Random masking.", "22k": "Trained on ImageNet-22k; the student's backbone, as published."}
    return [
        Entry(
            f"ibot_{name}", "iBOT", network, width, f"checkpoint_{branch}.pth", f"{base}/{folder}/checkpoint_{branch}.pth",
            APACHE, "https://github.com/bytedance/ibot", millions, knn=knn, linear=linear,
            note=trained.get(name.rpartition("_")[2], ""),
        )
        for name, network, width, folder, branch, millions, knn, linear in rows
    ]


def _msn() -> list[Entry]:
    rows = [("vits16_800ep", "ViT-S/16", 384), ("vitb16_600ep", "ViT-B/16", 768), ("vitl16_600ep", "ViT-L/16", 1024),
            ("vitb4_300ep", "ViT-B/4", 768), ("vitl7_200ep", "ViT-L/7", 1024)]
    return [
        Entry(
            f"msn_{name}", "MSN", network, width, f"{name}.pth.tar", f"{META}/msn/{name}.pth.tar", NC,
            "https://github.com/facebookresearch/msn",
            note="The page draws its low-shot figures and tabulates none. The target encoder is read, before the final norm.",
        )
        for name, network, width in rows
    ]


def _mae() -> list[Entry]:
    rows = [("vitb16", "ViT-B/16", 768, "base", "8cad7c"), ("vitl16", "ViT-L/16", 1024, "large", "b8b06e"),
            ("vith14", "ViT-H/14", 1280, "huge", "9bdbb0")]
    return [
        Entry(
            f"mae_{name}", "MAE", network, width, f"mae_pretrain_vit_{size}.pth",
            f"{META}/mae/pretrain/mae_pretrain_vit_{size}.pth", NC, "https://github.com/facebookresearch/mae",
            note=f"The page scores fine-tuning only. It gives the first digits of the md5: {digits}.",
        )
        for name, network, width, size, digits in rows
    ]


def _ijepa() -> list[Entry]:
    rows = [("vith14_300ep", "ViT-H/14", 1280, "IN1K-vit.h.14-300e"), ("vith16_448_300ep", "ViT-H/16, 448 px", 1280, "IN1K-vit.h.16-448px-300e"),
            ("vith14_22k", "ViT-H/14", 1280, "IN22K-vit.h.14-900e"), ("vitg16_22k", "ViT-g/16", 1408, "IN22K-vit.g.16-600e")]
    return [
        Entry(
            f"ijepa_{name}", "I-JEPA", network, width, f"{stem}.pth.tar", f"{META}/ijepa/{stem}.pth.tar", NC,
            "https://github.com/facebookresearch/ijepa",
            note="A full checkpoint of many gigabytes; the target encoder is read by its mean patch token. The page draws its figures.",
        )
        for name, network, width, stem in rows
    ]


def _siamese() -> list[Entry]:
    barlow, vicreg = "https://github.com/facebookresearch/barlowtwins", "https://github.com/facebookresearch/vicreg"
    byol = "https://github.com/google-deepmind/deepmind-research/tree/master/byol"
    same = "Barlow Twins and VICReg both call their file resnet50.pth, with equal names inside: by this name it is known whose it is."
    return [
        Entry("simsiam_r50_100ep", "SimSiam", "ResNet-50", 2048, "checkpoint_0099.pth.tar",
              f"{META}/simsiam/models/100ep/pretrain/checkpoint_0099.pth.tar", NC, "https://github.com/facebookresearch/simsiam",
              linear=68.1),
        Entry("barlow_r50", "Barlow Twins", "ResNet-50", 2048, "resnet50.pth", f"{META}/barlowtwins/ljng/resnet50.pth", MIT, barlow,
              linear=73.5, aliases=("facebookresearch/barlowtwins:resnet50",), note=same),
        Entry("vicreg_r50", "VICReg", "ResNet-50", 2048, "resnet50.pth", f"{META}/vicreg/resnet50.pth", MIT, vicreg, 23, linear=73.2,
              aliases=("facebookresearch/vicreg:resnet50",), note=same),
        Entry("vicreg_r50w2", "VICReg", "ResNet-50 w2", 4096, "resnet50x2.pth", f"{META}/vicreg/resnet50x2.pth", MIT, vicreg, 93,
              linear=75.5, aliases=("facebookresearch/vicreg:resnet50x2",)),
        Entry("vicreg_r200w2", "VICReg", "ResNet-200 w2", 4096, "resnet200x2.pth", f"{META}/vicreg/resnet200x2.pth", MIT, vicreg, 250,
              linear=77.3, aliases=("facebookresearch/vicreg:resnet200x2",)),
        Entry("byol_r50_1000ep", "BYOL", "ResNet-50", 2048, "byol_r50.pth", None, APACHE, byol,
              note="Published for JAX only (pretrain_res50x1.pkl, a pickle that needs dill and JAX to open). Conversions such as chigur/byol-convert load "
              "into torchvision's ResNet-50, which pads in another way than haiku's, so that features differ a little: read one as format=resnet"),
    ]


NEWER = (_dinov3, _ibot, _msn, _mae, _ijepa, _siamese)
