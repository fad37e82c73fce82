"""Own teachers: saved in a known layout, read back through the ordinary loader to the very network that was trained."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ssl_kd
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.errors import UserError
from ssl_kd.pretraining.config import PretrainConfig
from ssl_kd.pretraining.methods import METHODS

IMAGES = ArrayImages(np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8))
QUICK = {"size": 32, "batch_size": 8, "queue": 32, "views": "two_strong_small", "quiet": True, "precision": "32-true"}


@pytest.mark.parametrize(
    ("method", "arch_args", "family", "mean"),
    [
        ("moco", {}, "moco", (0.485, 0.456, 0.406)),
        ("simclr", {"channels": [16, 16, 32, 32]}, "simclr", (0.0, 0.0, 0.0)),
    ],
)
def test_a_teacher_comes_back_through_the_ordinary_loader(tmp_path, method, arch_args, family, mean):
    config = PretrainConfig(out=str(tmp_path / "t.pth.tar"), method=method, arch_args=arch_args, epochs=1, **QUICK)
    path = ssl_kd.pretrain(config, IMAGES)
    encoder = ssl_kd.load_teacher(path)
    assert encoder.preprocessing.mean == mean
    assert (encoder.preprocessing.size, encoder.preprocessing.resize, encoder.preprocessing.crop) == (32, 32, 32)
    assert "resize the shorter side to 32, centre crop 32" in str(ssl_kd.inspect(path))
    saved = torch.load(path, weights_only=True)
    prefix = "module.encoder_q." if method == "moco" else "backbone."
    assert saved["arch"] == "resnet18"
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, saved["state_dict"][prefix + name])
    assert family in str(ssl_kd.inspect(path)).lower()


TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
DINO = QUICK | {"method": "dino", "arch": "vit_tiny_patch16_224", "arch_args": TINY_VIT, "prototypes": 32, "lr": 1e-3}
OLD_NORM = "ignore:.*weight_norm.* is deprecated:FutureWarning"  # in lightly's head


@pytest.mark.filterwarnings(OLD_NORM)
def test_a_dino_teacher_is_the_moving_average_and_reads_as_the_official_checkpoint(tmp_path):
    path = ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "t.pth"), epochs=2, momentum=0.9, **DINO), IMAGES)
    encoder = ssl_kd.load_teacher(path)
    assert (encoder.dim, encoder.feature, encoder.preprocessing.size) == (64, "cls", 32)
    saved = torch.load(path, weights_only=True)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, saved["teacher"]["backbone." + name])
    learned = saved["student"]["module.backbone.blocks.0.attn.qkv.weight"]
    assert not torch.equal(learned, saved["teacher"]["backbone.blocks.0.attn.qkv.weight"])
    assert "dino" in str(ssl_kd.inspect(path)).lower()


V3_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 12}
V3 = QUICK | {"method": "moco_v3", "arch": "vit_tiny_patch16_224", "arch_args": V3_VIT, "lr": 1e-3, "momentum": 0.9}


@pytest.mark.parametrize("stem", [{}, {"img_size": 64, "patch_size": 16, "conv_stem": True}])
def test_a_moco_v3_teacher_is_the_base_encoder_and_reads_as_the_official_checkpoint(tmp_path, stem):
    settings = V3 | {"arch_args": V3_VIT | stem, "size": stem.get("img_size", 32)}
    path = ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "t.pth.tar"), epochs=2, **settings), IMAGES)
    encoder = ssl_kd.load_teacher(path)
    assert (encoder.dim, encoder.feature, encoder.preprocessing.size) == (48, "cls", settings["size"])
    assert encoder.backbone.blocks[0].attn.num_heads == 12
    assert "MoCo v3" in str(ssl_kd.inspect(path))
    saved = torch.load(path, weights_only=True)["state_dict"]
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, saved["module.base_encoder." + name])
    qkv = "blocks.0.attn.qkv.weight"
    assert not torch.equal(saved["module.base_encoder." + qkv], saved["module.momentum_encoder." + qkv])
    patches = [n for n in saved if n.startswith("module.base_encoder.patch_embed.proj") and n.endswith("weight")]
    same = [torch.allclose(saved[n], saved[n.replace("base", "momentum")], atol=1e-7) for n in patches]
    assert not any(same) if stem else all(same)  # a patch projection keeps its random weights, a stem learns


def test_the_loss_of_moco_v3_is_its_papers():
    # Algorithm 1 of arXiv:2104.02057: ctr(q, k) = 2 tau CE(q k' / tau, own row), for both orders of the views.
    model = METHODS["moco_v3"](PretrainConfig(out="x", **V3 | {"temperature": 0.3}))
    first, second = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = model(first, second, contextlib.nullcontext())

    def project(network, pixels):
        return network["head"](network["backbone"](model.normalise(pixels), ["cls"])[0]["cls"])

    q = [model.encoder_q["predictor"](project(model.encoder_q, x)) for x in (first, second)]
    k = [project(model.encoder_k, x) for x in (first, second)]
    unit = [[x / x.norm(dim=1, keepdim=True) for x in pair] for pair in (q, k)]
    expected = 0.0
    for one, other in ((unit[0][0], unit[1][1]), (unit[0][1], unit[1][0])):
        table = (one @ other.T / 0.3).softmax(1)
        expected = expected - 2 * 0.3 * table.diag().log().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in model.encoder_k.parameters())


@pytest.mark.filterwarnings(OLD_NORM)
@pytest.mark.parametrize("shared", [DINO, V3], ids=["dino", "moco_v3"])
def test_an_interrupted_vit_goes_on_to_the_same_bits(tmp_path, shared):
    whole = ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "whole.pth"), epochs=2, **shared), IMAGES)
    with pytest.MonkeyPatch.context() as patch:
        count = [0]
        step = torch.optim.AdamW.step

        def stops(self, *args, **kwargs):
            count[0] += 1
            if count[0] > 4:  # in the middle of the second epoch
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        patch.setattr(torch.optim.AdamW, "step", stops)
        with pytest.raises(KeyboardInterrupt):
            ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "cut.pth"), epochs=2, **shared), IMAGES)
    cut = ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "cut.pth"), epochs=2, **shared), IMAGES)
    a, b = (torch.load(p, weights_only=True) for p in (whole, cut))
    for part in {"student", "teacher", "dino_loss", "state_dict"} & a.keys():
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_an_interrupted_teacher_goes_on_to_the_same_bits(tmp_path, method):
    shared = QUICK | {"method": method, "arch_args": {"channels": [8, 8, 8, 8]}, "epochs": 3}
    whole = ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "whole.pth.tar"), **shared), IMAGES)

    class StopsReading(ArrayImages):
        reads = 0

        def _load(self, i, shorter):
            self.reads += 1
            if self.reads > 40:  # in the middle of the second epoch
                raise KeyboardInterrupt
            return super()._load(i, shorter)

    cut = PretrainConfig(out=str(tmp_path / "cut.pth.tar"), **shared)
    with pytest.raises(KeyboardInterrupt):
        ssl_kd.pretrain(cut, StopsReading(IMAGES.array))
    assert torch.load(cut.out, weights_only=True)["epoch"] == 1
    ssl_kd.pretrain(cut, IMAGES)
    a, b = (torch.load(p, weights_only=True)["state_dict"] for p in (whole, cut.out))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "mocov2"}, "Did you mean moco"),
        ({"views": "weak"}, "needs two views of an image"),
        ({"arch": "vit_tiny_patch16_224"}, "trains resnet18, "),
        ({"arch": "test_efficientnet"}, "trains ResNets, whose head is called fc"),
        ({"arch": "torchvision/resnet18"}, "trains resnet18, "),
        ({"arch": "nope"}, "timm has no such architecture"),
        ({"arch_args": {"foo": 1}}, "resnet18: cannot be built with"),
        ({"method": "moco_v3"}, "trains ViTs of 12 heads"),
        ({"method": "moco_v3", "arch": "vit_tiny_patch16_224"}, "num_heads: 12 goes into arch_args"),
        (DINO | {"arch_args": TINY_VIT | {"img_size": 48}}, "size: .* cannot take 32 px .*img_size in arch_args"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
    ],
)
@pytest.mark.filterwarnings(OLD_NORM)
def test_wrong_settings_are_one_line_and_leave_no_file(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "t.pth.tar"), **QUICK | settings), IMAGES)
    assert not list(tmp_path.iterdir())


def test_a_strangers_file_is_not_overwritten(tmp_path):
    path = tmp_path / "thesis.pth"
    path.write_bytes(b"years of work")
    with pytest.raises(UserError, match="not a checkpoint of this method"):
        ssl_kd.pretrain(PretrainConfig(out=str(path), **QUICK), IMAGES)
    assert path.read_bytes() == b"years of work"


NARROW = {"channels": [8, 8, 8, 8]}


@pytest.mark.filterwarnings(OLD_NORM)
@pytest.mark.parametrize(
    ("method", "arch", "arch_args", "words"),
    [
        ("dino", "test_vit", {"img_size": 32}, "reads back as another network at 32 px"),  # 2 heads would become 1
        ("dino", "vit_tiny_patch16_224", TINY_VIT | {"act_layer": "relu"}, "reads back as another network"),
        ("dino", "vit_tiny_patch16_224", TINY_VIT | {"embed_dim": 192, "num_heads": 3}, "192 with 12 blocks lacks"),
        ("dino", "vit_tiny_patch16_224", TINY_VIT | {"embed_dim": 144, "num_heads": 12}, "cannot have 2.25 heads"),
        ("dino", "vit_tiny_patch16_224", TINY_VIT | {"global_pool": "avg"}, "no known teacher format"),
        ("moco_v3", "vit_tiny_patch16_224", V3_VIT | {"num_heads": 6}, "reads back as another network"),
        ("moco", "resnet18", NARROW | {"act_layer": "gelu"}, "reads back as another network"),
        ("moco", "resnet18", {"channels": [8, 16, 24, 32], "output_stride": 8}, "reads back as another network"),
        ("moco", "resnet26", NARROW, "no known ResNet has 2-2-2-2 bottleneck blocks"),
        ("moco", "seresnet18", NARROW, "has no place for"),
        ("simclr", "test_resnet", {}, "cannot save test_resnet so that it can be loaded .no known teacher format"),
    ],
)
def test_a_network_that_would_come_back_as_another_or_not_at_all_is_refused_before_training(
    tmp_path, method, arch, arch_args, words
):
    settings = QUICK | {"method": method, "arch": arch, "arch_args": arch_args, "prototypes": 32}
    with pytest.raises(UserError, match=words) as e:
        ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "t.pth.tar"), **settings), Unread(IMAGES.array))
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


class Unread(ArrayImages):
    """Images at which nobody may look."""

    def _load(self, i, shorter):
        raise AssertionError("training began")


def test_trying_out_the_loader_changes_no_bit_of_the_teacher(tmp_path, monkeypatch):
    settings = QUICK | {"arch_args": NARROW, "epochs": 1}
    tried = ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "tried.pth.tar"), **settings), IMAGES)
    monkeypatch.setattr("ssl_kd.pretraining.trainer._rehearse", lambda *_: None)
    untried = ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "untried.pth.tar"), **settings), IMAGES)
    a, b = (torch.load(p, weights_only=True)["state_dict"] for p in (tried, untried))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_small_stem_comes_back(tmp_path):
    small = QUICK | {"arch_args": NARROW | {"small_stem": True}, "epochs": 1, "seed": 2**63 - 1}
    encoder = ssl_kd.load_teacher(ssl_kd.pretrain(PretrainConfig(out=str(tmp_path / "t.pth.tar"), **small), IMAGES))
    assert encoder.arch_args["small_stem"]


def test_a_place_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("mine")
    config = PretrainConfig(out=str(tmp_path / "file" / "t.pth.tar"), **QUICK | {"arch_args": NARROW})
    with pytest.raises(UserError, match=r"t.pth.tar: could not be written"):
        ssl_kd.pretrain(config, Unread(IMAGES.array))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = PretrainConfig(
        out=str(tmp_path_factory.mktemp("teacher") / "t.pth.tar"), **QUICK | {"arch_args": NARROW, "epochs": 1}
    )
    return replace(config, out=str(ssl_kd.pretrain(config, IMAGES)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"lr": 0.5}, "lr was 0.03, now 0.5"),
        ({"size": 64}, "size was 32, now 64"),
        ({"epochs": 2}, "epochs was 1, now 2"),
        ({}, "images_digest was"),
    ],
)
def test_a_teacher_is_not_gone_on_with_under_other_settings_or_images(finished, change, words):
    images = IMAGES if change else ArrayImages(IMAGES.array[:20])
    before = Path(finished.out).read_bytes()
    with pytest.raises(UserError, match=f"begun with other settings .*{words}"):
        ssl_kd.pretrain(replace(finished, **change), images)
    assert Path(finished.out).read_bytes() == before


def test_what_decides_nothing_may_change_and_an_older_checkpoint_goes_on(finished, tmp_path):
    older = tmp_path / "elsewhere.pth.tar"
    older.write_bytes(Path(finished.out).read_bytes())
    ssl_kd.pretrain(replace(finished, out=str(older), threads=1, images="moved/"), Unread(IMAGES.array))
    saved = torch.load(older, weights_only=True)
    del saved["preprocessing"]  # files of earlier versions held the size among their settings only
    torch.save(saved, older)
    read = ssl_kd.load_teacher(older).preprocessing
    assert (read.size, read.resize, read.crop) == (32, 32, 32)
    del saved["settings"]
    torch.save(saved, older)
    ssl_kd.pretrain(replace(finished, out=str(older), epochs=2), IMAGES)
    assert torch.load(older, weights_only=True)["epoch"] == 2
