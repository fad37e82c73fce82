# fmt: off
# ruff: noqa: E501 - a row of a table stays on one line
"""The table of published teachers: what each file is called, where it lives, under which licence, what it scored.

Every figure stands on the page named as `source`, read in 2026 (DINOv2's digests and sizes: see its note). Nothing is
estimated; what nobody publishes is None.
A new teacher is one row in one family below or in `zoo_newer`. `ssl_kd.checkpoints.zoo` reads this table; nothing else needs to change.
"""

from __future__ import annotations

from ssl_kd.checkpoints.zoo_entry import APACHE, META, MIT, NC, Entry
from ssl_kd.checkpoints.zoo_newer import NEWER

__all__ = ["ZOO", "Entry"]


def _dino() -> list[Entry]:
    source = "https://github.com/facebookresearch/dino"
    rows = [  # hub name, network, width, folder, parameters, k-NN, linear, other names
        ("vits16", "ViT-S/16", 384, "deitsmall16", 21, 74.5, 77.0, ("vit_small_patch16_224.dino", "facebook/dino-vits16")),
        ("vits8", "ViT-S/8", 384, "deitsmall8", 21, 78.3, 79.7, ("vit_small_patch8_224.dino", "facebook/dino-vits8")),
        ("vitb16", "ViT-B/16", 768, "vitbase16", 85, 76.1, 78.2, ("vit_base_patch16_224.dino", "facebook/dino-vitb16")),
        ("vitb8", "ViT-B/8", 768, "vitbase8", 85, 77.4, 80.1, ("vit_base_patch8_224.dino", "facebook/dino-vitb8")),
        ("resnet50", "ResNet-50", 2048, "resnet50", 23, 67.5, 75.3, ()),
        ("xcit_small_12_p16", "XCiT-S12/16", 384, "xcit_small_12_p16", 26, 76.0, 77.8, ()),
        ("xcit_small_12_p8", "XCiT-S12/8", 384, "xcit_small_12_p8", 26, 77.1, 79.2, ()),
        ("xcit_medium_24_p16", "XCiT-M24/16", 512, "xcit_medium_24_p16", 84, 76.4, 78.8, ()),
        ("xcit_medium_24_p8", "XCiT-M24/8", 512, "xcit_medium_24_p8", 84, 77.9, 80.3, ()),
    ]
    made = []
    for hub, network, width, folder, millions, knn, linear, others in rows:
        base = f"dino_{folder}_pretrain"
        aliases = (f"facebookresearch/dino:dino_{hub}", *others)
        shared = (APACHE, source, millions, None, knn, linear)
        made += [
            Entry(
                f"dino_{hub}", "DINO", network, width, f"{base}.pth", f"{META}/dino/{base}/{base}.pth",
                *shared, aliases=aliases,
            ),
            Entry(
                f"dino_{hub}_full", "DINO", network, width, f"{base}_full_checkpoint.pth",
                f"{META}/dino/{base}/{base}_full_checkpoint.pth", *shared,
                note="Student, teacher and heads; the teacher's backbone is read, the same weights as without _full.",
            ),
        ]
    return made


def _dinov2() -> list[Entry]:
    rows = [  # size, network, width, parameters, registers, k-NN, linear, sha256, bytes
        ("s", "ViT-S/14", 384, 21, False, 79.0, 81.1, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9", 88_283_115),
        ("s", "ViT-S/14", 384, 21, True, 79.1, 80.9, "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb", None),
        ("b", "ViT-B/14", 768, 86, False, 82.1, 84.5, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73", 346_378_731),
        ("b", "ViT-B/14", 768, 86, True, 82.0, 84.6, "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71", None),
        ("l", "ViT-L/14", 1024, 300, False, 83.5, 86.3, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428", 1_217_586_395),
        ("l", "ViT-L/14", 1024, 300, True, 83.8, 86.7, "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51", None),
        ("g", "ViT-g/14", 1536, 1100, False, 83.5, 86.5, "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3", None),
        ("g", "ViT-g/14", 1536, 1100, True, 83.7, 87.1, "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283", None),
    ]
    timm = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    made = []
    for size, network, width, millions, registers, knn, linear, sha256, length in rows:
        hub = f"dinov2_vit{size}14{'_reg' if registers else ''}"
        file = f"dinov2_vit{size}14{'_reg4' if registers else ''}_pretrain.pth"
        aliases = [f"facebookresearch/dinov2:{hub}"]
        aliases += [f"vit_{timm[size]}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"]
        aliases += [] if registers else [f"facebook/dinov2-{timm[size]}"]
        made.append(
            Entry(
                hub, "DINOv2", network + (", 4 registers" if registers else ""), width, file,
                f"{META}/dinov2/dinov2_vit{size}14/{file}", APACHE,
                "https://github.com/facebookresearch/dinov2", millions, length, knn, linear, sha256,
                aliases=tuple(aliases),
                note="Trained on LVD-142M. Digest recorded by finegrain-ai/refiners, not by the publisher.",
            )
        )
    return made


def _moco() -> list[Entry]:
    # The repository's default branch has been empty since 2026-02; this is its last commit with content.
    source = "https://github.com/facebookresearch/moco/tree/132aea9da9bb995a411c915c0420be3db62052f3"
    note = (
        "The repository was emptied in 2026-02; the source is its last commit with content. Its LICENSE has said MIT "
        "since 2023-01 without naming the weights, its README CC-BY-NC-4.0: ask before commercial use. Only the first 8 digits of the md5 are published."
    )
    rows = [
        ("v1", 200, 60.6, "b251726a", ("mocov1_resnet50",)),
        ("v2", 200, 67.7, "59fd9945", ()),
        ("v2", 800, 71.1, "a04e12f8", ("mocov2_resnet50",)),
    ]
    return [
        Entry(
            f"moco_{version}_r50_{epochs}ep", f"MoCo {version}", "ResNet-50", 2048,
            f"moco_{version}_{epochs}ep_pretrain.pth.tar",
            f"{META}/moco/moco_checkpoints/moco_{version}_{epochs}ep/moco_{version}_{epochs}ep_pretrain.pth.tar",
            f"MIT or {NC}", source, linear=linear, md5=md5, aliases=aliases, note=note,
        )
        for version, epochs, linear, md5, aliases in rows
    ]


def _mocov3() -> list[Entry]:
    rows = [  # name, network, width, file stem, linear, other names
        ("r50_100ep", "ResNet-50", 2048, "r-50-100ep", 68.9, ()),
        ("r50_300ep", "ResNet-50", 2048, "r-50-300ep", 72.8, ()),
        ("r50_1000ep", "ResNet-50", 2048, "r-50-1000ep", 74.6, ("mocov3_resnet50",)),
        ("vits16_300ep", "ViT-S/16, 12 heads", 384, "vit-s-300ep", 73.2, ("mocov3_vits16",)),
        ("vitb16_300ep", "ViT-B/16", 768, "vit-b-300ep", 76.7, ("mocov3_vitb16",)),
    ]
    source = "https://github.com/facebookresearch/moco-v3/blob/main/CONFIG.md"
    return [
        Entry(
            f"mocov3_{name}", "MoCo v3", network, width, f"{stem}.pth.tar",
            f"{META}/moco-v3/{stem}/{stem}.pth.tar", NC, source, linear=linear, aliases=(f"moco_v3_{name}",
            *aliases), note="Beside it lies linear-*.pth.tar, the probed network: not the teacher.",
        )
        for name, network, width, stem, linear, aliases in rows
    ]


def _swav() -> list[Entry]:
    rows = [  # name, method, network, width, file stem, parameters, linear, other names
        ("swav_r50_800ep", "SwAV", 1, "swav_800ep", 75.3, ("facebookresearch/swav:resnet50", "swav_resnet50")),
        ("swav_r50_400ep", "SwAV", 1, "swav_400ep", 74.6, ()),
        ("swav_r50_200ep", "SwAV", 1, "swav_200ep", 73.9, ()),
        ("swav_r50_100ep", "SwAV", 1, "swav_100ep", 72.1, ()),
        ("swav_r50_200ep_bs256", "SwAV", 1, "swav_200ep_bs256", 72.7, ()),
        ("swav_r50_400ep_bs256", "SwAV", 1, "swav_400ep_bs256", 74.3, ()),
        ("swav_r50_400ep_2x224", "SwAV", 1, "swav_400ep_2x224", 70.1, ()),
        ("swav_r50w2_400ep", "SwAV", 2, "swav_RN50w2_400ep", 77.3, ("facebookresearch/swav:resnet50w2", "swav_resnet50w2", "swav_r50w2")),
        ("swav_r50w4_400ep", "SwAV", 4, "swav_RN50w4_400ep", 77.9, ("facebookresearch/swav:resnet50w4", "swav_resnet50w4", "swav_r50w4")),
        ("swav_r50w5_400ep", "SwAV", 5, "swav_RN50w5_400ep", 78.5, ("facebookresearch/swav:resnet50w5", "swav_resnet50w5", "swav_r50w5")),
        ("deepclusterv2_r50_800ep", "DeepCluster-v2", 1, "deepclusterv2_800ep", 75.2, ("deepclusterv2_resnet50",)),
        ("deepclusterv2_r50_400ep", "DeepCluster-v2", 1, "deepclusterv2_400ep", 74.3, ()),
        ("deepclusterv2_r50_400ep_2x224", "DeepCluster-v2", 1, "deepclusterv2_400ep_2x224", 70.2, ()),
        ("selav2_r50_400ep", "SeLa-v2", 1, "selav2_400ep", 71.8, ()),
        ("selav2_r50_400ep_2x224", "SeLa-v2", 1, "selav2_400ep_2x224", 67.2, ()),
    ]
    millions = {1: None, 2: 94, 4: 375, 5: 586}
    return [
        Entry(
            name, method, "ResNet-50" + (f" w{times}" if times > 1 else ""), 2048 * times,
            f"{stem}_pretrain.pth.tar", f"{META}/deepcluster/{stem}_pretrain.pth.tar", NC,
            "https://github.com/facebookresearch/swav", millions[times], linear=linear, aliases=aliases,
        )
        for name, method, times, stem, linear, aliases in rows
    ]


def _simclr() -> list[Entry]:
    source = "https://github.com/google-research/simclr"
    made = []
    for times, linear, converted in ((1, 69.1, 68.9), (2, 74.2, 74.1), (4, 76.6, 76.4)):
        made.append(
            Entry(
                f"simclr_v1_r50_{times}x", "SimCLR", "ResNet-50" + (f" w{times}" if times > 1 else ""),
                2048 * times, f"resnet50-{times}x.pth", None, APACHE, source, linear=linear,
                aliases=(f"simclr_resnet50_{times}x",),
                note=(
                    "Published for TensorFlow only: unzip https://storage.cloud.google.com/simclr-gcs/checkpoints/"
                    f"ResNet50_{times}x.zip and run, from https://github.com/tonylins/simclr-converter, `python convert.py "
                    f"ResNet50_{times}x/model.ckpt-225206 resnet50-{times}x.pth` (its author measured {converted} after it)."
                ),
            )
        )
    rows = [  # depth, width, selective kernels, parameters, linear
        (50, 1, 0, 24, 71.7), (50, 1, 1, 35, 74.6), (50, 2, 0, 94, 75.6), (50, 2, 1, 140, 77.7),
        (101, 1, 0, 43, 73.6), (101, 1, 1, 65, 76.3), (101, 2, 0, 170, 77.0), (101, 2, 1, 257, 79.0),
        (152, 1, 0, 58, 74.5), (152, 1, 1, 89, 77.2), (152, 2, 0, 233, 77.4), (152, 2, 1, 354, 79.4), (152, 3, 1, 795, 79.8),
    ]
    measured = {"r50_1x_sk0": 70.97, "r50_1x_sk1": 73.79, "r152_3x_sk1": 79.12}
    for depth, times, kernels, millions, linear in rows:
        stem = f"r{depth}_{times}x_sk{kernels}"
        after = f" (its author measured {measured[stem]} after it)" if stem in measured else ""
        made.append(
            Entry(
                f"simclr_v2_{stem}", "SimCLR v2",
                f"ResNet-{depth} w{times}" + (", selective kernels" if kernels else ""), 2048 * times,
                f"{stem}.pth", None, APACHE, source, millions, linear=linear, aliases=(f"simclrv2_{stem}",),
                note=(
                    f"Published for TensorFlow only: from https://github.com/Separius/SimCLRv2-Pytorch run `python "
                    f"download.py {stem}` and `python convert.py {stem}/model.ckpt-250228`, which writes {stem}.pth{after}."
                ),
            )
        )
    return made


def _vissl() -> list[Entry]:
    source = "https://github.com/facebookresearch/vissl/blob/main/MODEL_ZOO.md"
    rows = [  # name, method, network, width, folder, last phase, linear
        ("simclr_r50_100ep", "SimCLR", "ResNet-50", 2048, "simclr_rn50_100ep_simclr_8node_resnet_16_07_20.8edb093e", 99, 64.4),
        ("simclr_r50_200ep", "SimCLR", "ResNet-50", 2048, "simclr_rn50_200ep_simclr_8node_resnet_16_07_20.a816c0ef", 199, 66.61),
        ("simclr_r50_400ep", "SimCLR", "ResNet-50", 2048, "simclr_rn50_400ep_simclr_8node_resnet_16_07_20.36b338ef", 399, 67.71),
        ("simclr_r50_800ep", "SimCLR", "ResNet-50", 2048, "simclr_rn50_800ep_simclr_8node_resnet_16_07_20.7e8feed1", 799, 69.68),
        ("simclr_r50_1000ep", "SimCLR", "ResNet-50", 2048, "simclr_rn50_1000ep_simclr_8node_resnet_16_07_20.afe428c7", 999, 68.8),
        ("simclr_r50w2_100ep", "SimCLR", "ResNet-50 w2", 4096, "simclr_rn50w2_100ep_simclr_8node_resnet_16_07_20.05b37ec3", 99, 69.82),
        ("simclr_r50w2_1000ep", "SimCLR", "ResNet-50 w2", 4096, "simclr_rn50w2_1000ep_simclr_8node_resnet_16_07_20.e1e3bbf0", 999, 73.84),
        ("simclr_r50w4_1000ep", "SimCLR", "ResNet-50 w4", 8192, "simclr_rn50w4_1000ep_bs32_16node_simclr_8node_resnet_28_07_20.9e20b0ae", 999, 71.61),
        ("simclr_r101_100ep", "SimCLR", "ResNet-101", 2048, "simclr_rn101_100ep_simclr_8node_resnet_16_07_20.1ff6cb4b", 99, 62.76),
        ("simclr_r101_1000ep", "SimCLR", "ResNet-101", 2048, "simclr_rn101_1000ep_simclr_8node_resnet_16_07_20.35063cea", 999, 71.56),
        ("swav_r50_100ep", "SwAV", "ResNet-50", 2048, "swav_in1k_rn50_100ep_swav_8node_resnet_27_07_20.7e6fc6bf", 99, 71.99),
        ("swav_r50_200ep", "SwAV", "ResNet-50", 2048, "swav_in1k_rn50_200ep_swav_8node_resnet_27_07_20.bd595bb0", 199, 73.85),
        ("swav_r50_400ep", "SwAV", "ResNet-50", 2048, "swav_in1k_rn50_400ep_swav_8node_resnet_27_07_20.a5990fc9", 399, 74.81),
        ("swav_r50_800ep", "SwAV", "ResNet-50", 2048, "swav_in1k_rn50_800ep_swav_8node_resnet_27_07_20.a0a6b676", 799, 74.92),
        ("swav_r50w2_400ep", "SwAV", "ResNet-50 w2", 4096, "swav_rn50w2_in1k_bs32_16node_400ep_swav_8node_resnet_30_07_20.93563e51", 399, 77.01),
        ("swav_r50w4_400ep", "SwAV", "ResNet-50 w4", 8192, "swav_rn50w4_in1k_bs40_8node_400ep_swav_8node_resnet_30_07_20.1736135b", 399, 77.03),
        ("moco_v2_r50_200ep", "MoCo v2", "ResNet-50", 2048, "moco_v2_1node_lr.03_step_b32_zero_init", 199, 66.4),
    ]
    return [
        Entry(
            f"vissl_{name}", method, network, width, f"model_final_checkpoint_phase{phase}.torch",
            f"{META}/vissl/model_zoo/{folder}/model_final_checkpoint_phase{phase}.torch", MIT, source,
            linear=linear, note="VISSL's own training run; the project has been frozen since 2024.",
        )
        for name, method, network, width, folder, phase, linear in rows
    ]


def _openmmlab() -> list[Entry]:
    base = "https://download.openmmlab.com/mmselfsup/1.x"
    source = "https://github.com/open-mmlab/mmselfsup/blob/main/docs/en/model_zoo.md"
    rows = [  # name, method, network, width, folder, file stem (or "" for the folder's name), date and digest, linear
        ("simclr_r50_200ep_bs256", "SimCLR", "ResNet-50", 2048, "simclr/simclr_resnet50_8xb32-coslr-200e_in1k", "", "20220825-15f807a4", 62.7),
        ("simclr_r50_200ep", "SimCLR", "ResNet-50", 2048, "simclr/simclr_resnet50_16xb256-coslr-200e_in1k", "", "20220825-4d9cce50", 66.9),
        ("simclr_r50_800ep", "SimCLR", "ResNet-50", 2048, "simclr/simclr_resnet50_16xb256-coslr-800e_in1k", "", "20220825-85fcc4de", 69.2),
        ("moco_v2_r50_200ep", "MoCo v2", "ResNet-50", 2048, "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k", "", "20220825-b6d23c86", 67.5),
        ("mocov3_r50_100ep", "MoCo v3", "ResNet-50", 2048, "mocov3/mocov3_resnet50_8xb512-amp-coslr-100e_in1k", "", "20220927-f1144efa", 69.6),
        ("mocov3_r50_300ep", "MoCo v3", "ResNet-50", 2048, "mocov3/mocov3_resnet50_8xb512-amp-coslr-300e_in1k", "", "20220927-1e4f3304", 72.8),
        ("mocov3_r50_800ep", "MoCo v3", "ResNet-50", 2048, "mocov3/mocov3_resnet50_8xb512-amp-coslr-800e_in1k", "", "20220927-e043f51a", 74.4),
        ("mocov3_vits16_300ep", "MoCo v3", "ViT-S/16, 12 heads", 384, "mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k", "-224", "20220826-08bc52f7", 73.6),
        ("mocov3_vitb16_300ep", "MoCo v3", "ViT-B/16", 768, "mocov3/mocov3_vit-base-p16_16xb256-amp-coslr-300e_in1k", "-224", "20220826-25213343", 76.9),
        ("swav_r50_200ep", "SwAV", "ResNet-50", 2048, "swav/swav_resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96", "", "20220825-5b3fc7fc", 70.5),
    ]
    return [
        Entry(
            f"mm_{name}", method, network, width, f"{folder.split('/')[1]}{end}_{stamp}.pth",
            f"{base}/{folder}/{folder.split('/')[1]}{end}_{stamp}.pth", APACHE, source, linear=linear,
            sha256=stamp.split("-")[1],
            note="OpenMMLab's own training run; the file's name ends in the first 8 digits of its sha256.",
        )
        for name, method, network, width, folder, end, stamp, linear in rows
    ]


def _others() -> list[Entry]:
    spijkervet = "https://github.com/Spijkervet/SimCLR"
    sthalles = "https://github.com/sthalles/SimCLR"
    lightly = "https://lightly-ssl-checkpoints.s3.amazonaws.com"
    by_hand = "Published on Google Drive only: download it by hand from"
    made = [
        Entry(
            f"simclr_spijkervet_{name}", "SimCLR", network, width, file,
            f"{spijkervet}/releases/download/{release}/{file}", MIT, spijkervet,
            note=f"Trained on STL-10's unlabelled images; linear accuracy on STL-10: {stl}.",
        )
        for name, network, width, release, file, stl in (
            ("r50", "ResNet-50", 2048, "1.2", "checkpoint_100.tar", 82.9),
            ("r18", "ResNet-18", 512, "1.1", "checkpoint_100.tar", 76.5),
            ("r18_40ep", "ResNet-18", 512, "1.0", "checkpoint_40.tar", 71.9),
        )
    ]
    made += [
        Entry(
            f"simclr_sthalles_{name}", "SimCLR", network, width, file, None, MIT, sthalles,
            note=f"{by_hand} https://drive.google.com/open?id={drive} ({data}; linear accuracy there: {linear}).",
        )
        for name, network, width, file, drive, data, linear in (
            ("r18_stl10", "ResNet-18", 512, "checkpoint_0100.pth.tar", "14_nH2FkyKbt61cieQDiSbBVNP8-gtwgF", "STL-10", 74.45),
            ("r18_cifar10", "ResNet-18", 512, "checkpoint_0100.pth.tar", "1lc2aoVtrAetGn0PnTkOyFzPCIucOJq7C", "CIFAR-10", 69.82),
            ("r50_stl10", "ResNet-50", 2048, "checkpoint_0050.pth.tar", "1ByTKAUsdm_X7tLcii6oAEl5qFRqRMZSu", "STL-10", 70.075),
        )
    ]
    made.append(
        Entry(
            "simclr_openselfsup_r50", "SimCLR", "ResNet-50", 2048, "simclr_r50_bs256_ep200-4577e9a6.pth", None,
            APACHE, "https://github.com/open-mmlab/OpenSelfSup", linear=60.06,
            note=f"{by_hand} https://drive.google.com/file/d/1aZ43nSdivdNxHbM9DKVoZYVhZ8TNnmPp/view",
        )
    )
    made += [
        Entry(
            f"lightly_{name}", method, network, width, file,
            f"{lightly}/{folder}/pretrain/version_0/checkpoints/{file.replace('=', '%3D')}", MIT,
            "https://github.com/lightly-ai/lightly/blob/master/docs/source/getting_started/benchmarks.rst", knn=knn,
            linear=linear, note="lightly's benchmark: 100 epochs on ImageNet-1k.",
        )
        for name, method, network, width, folder, file, knn, linear in (
            ("simclr_r50_100ep", "SimCLR", "ResNet-50", 2048, "imagenet_resnet50_simclr_2023-06-22_09-11-13", "epoch=99-step=500400.ckpt", 44.8, 63.2),
            ("moco_v2_r50_100ep", "MoCo v2", "ResNet-50", 2048, "imagenet_resnet50_mocov2_2024-02-18_10-29-14", "epoch=99-step=500400.ckpt", 41.8, 61.5),
            ("swav_r50_100ep", "SwAV", "ResNet-50", 2048, "imagenet_resnet50_swav_2023-05-25_08-29-14", "epoch=99-step=500400.ckpt", 49.5, 67.2),
            ("dino_r50_100ep", "DINO", "ResNet-50", 2048, "imagenet_resnet50_dino_2023-06-06_13-59-48", "epoch=99-step=1000900.ckpt", 49.9, 68.2),
            ("dino_vits16_100ep", "DINO", "ViT-S/16", 384, "imagenet_vits14_dino_2025-02-16_16-03-14", "epoch=99-step=1000900.ckpt", 67.5, 73.3),
        )
    ]
    made += [
        Entry(
            f"solo_{name}_r18_cifar10", method, "ResNet-18, CIFAR stem", 512, f"solo_{name}_r18_cifar10.ckpt",
            None, MIT, "https://github.com/vturrisi/solo-learn",
            note=(
                f"Gone: solo-learn says that its checkpoints are no longer available as of 2026. Its scripts train the same "
                f"network again (accuracy on CIFAR-10, online: {accuracy}); a file you kept from then loads by its path."
            ),
        )
        for name, method, accuracy in (
            ("simclr", "SimCLR", 90.74),
            ("moco_v2plus", "MoCo v2+", 92.94),
            ("mocov3", "MoCo v3", 93.10),
            ("swav", "SwAV", 89.17),
            ("dino", "DINO", 89.52),
        )
    ]
    return made


FAMILIES = (_dino, _dinov2, _moco, _mocov3, _swav, _simclr, _vissl, _openmmlab, _others, *NEWER)
ZOO: dict[str, Entry] = {entry.name: entry for family in FAMILIES for entry in family()}
