"""Heads of self-supervised teachers, read from files in their labs' layouts, against the formulas of these labs."""

import pytest
import torch
import torch.nn.functional as F
from small_heads import VIT, dino_head, named, saved_dino, saved_ibot, saved_msn, small_vit
from small_runs import SMALL, small_images, small_teacher
from torch import nn

import ssl_kd
from ssl_kd.checkpoints.heads import load_head
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError


@pytest.mark.parametrize(("prefix", "old_names"), [("module.head.", True), ("head.", False)])
def test_dinos_head_says_what_the_trained_one_said(tmp_path, prefix, old_names):
    layers, last = saved_dino(tmp_path / "full.pth", prefix, old_names)
    head, z = load_head(tmp_path / "full.pth"), torch.randn(4, 16)
    expected = last(F.normalize(layers(z), dim=1)) - torch.linspace(-1, 1, 7)
    assert torch.allclose(head(z), expected, atol=1e-6)
    assert head.temperature == 0.04
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("kind", ["swav", "no batch norm", "one layer"])
def test_swavs_prototypes_see_through_its_projection(tmp_path, kind):
    torch.manual_seed(0)
    hidden = [nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5)]
    projection = {
        "swav": nn.Sequential(*hidden),
        "no batch norm": nn.Sequential(hidden[0], nn.ReLU(), hidden[3]),
        "one layer": nn.Linear(16, 5),
    }[kind]
    projection(torch.randn(32, 16))  # running statistics of something
    prototypes = nn.Linear(5, 9, bias=False)
    state = {f"module.projection_head.{name}": tensor for name, tensor in projection.state_dict().items()}
    torch.save(state | {"module.prototypes.weight": prototypes.weight.detach()}, tmp_path / "swav.pth.tar")
    head, z = load_head(tmp_path / "swav.pth.tar").train(), torch.randn(4, 16)
    assert torch.allclose(head(z), prototypes(F.normalize(projection.eval()(z), dim=1)), atol=1e-6)
    assert head.temperature == 0.1


def test_files_without_a_head_or_with_another_are_one_line(tmp_path):
    torch.save({"teacher": {"backbone.weight": torch.zeros(2)}}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds no head that is known here") as caught:
        load_head(tmp_path / "none.pth")
    assert "\n" not in str(caught.value)
    saved_dino(tmp_path / "full.pth")
    tree = torch.load(tmp_path / "full.pth", weights_only=True)
    tree["teacher"]["module.head.mlp.1.weight"] = torch.zeros(2)
    torch.save(tree, tmp_path / "norm.pth")
    with pytest.raises(BrokenCheckpoint, match=r"another kind: no place for mlp\.1\.weight"):
        load_head(tmp_path / "norm.pth")
    del tree["teacher"]["module.head.mlp.1.weight"], tree["teacher"]["module.head.mlp.2.bias"]
    torch.save(tree, tmp_path / "cut.pth")
    with pytest.raises(BrokenCheckpoint, match=r"lacks mlp\.2\.bias"):
        load_head(tmp_path / "cut.pth")
    tree["teacher"]["module.head.mlp.2.bias"] = torch.full((12,), torch.nan)
    torch.save(tree, tmp_path / "nan.pth")
    with pytest.raises(BrokenCheckpoint, match="NaN or infinity"):
        load_head(tmp_path / "nan.pth")


@pytest.mark.parametrize("norms", [True, False])
def test_msns_prototypes_see_the_class_token_behind_the_final_norm(tmp_path, norms):
    """softmax(cos / 0.1) sharpened to the power 1 / 0.25 is softmax(cos / 0.025)."""
    projection, prototypes = saved_msn(tmp_path / "vit.pth.tar", norms)
    head, z = load_head(tmp_path / "vit.pth.tar"), torch.randn(4, 16)
    cosines = F.normalize(projection(z), dim=1) @ F.normalize(prototypes, dim=1).T
    assert torch.allclose(head(z), cosines, atol=1e-6)
    sharp = F.softmax(cosines / 0.1, dim=1) ** 4
    assert torch.allclose(F.softmax(head(z) / head.temperature, dim=1), sharp / sharp.sum(1, keepdim=True), atol=1e-6)
    assert head.feature == "cls"


def test_ibot_has_a_last_layer_for_class_tokens_and_one_for_patches(tmp_path):
    layers, last, of_patches = saved_ibot(tmp_path / "checkpoint.pth")
    z = torch.randn(4, 16)
    whole, patches = (load_head(tmp_path / "checkpoint.pth", patches=p) for p in (False, True))
    embedded = F.normalize(layers(z), dim=1)
    assert torch.allclose(whole(z), last(embedded) - torch.linspace(-1, 1, 7), atol=1e-6)
    assert torch.allclose(patches(z), of_patches(embedded) - torch.linspace(0, 1, 9), atol=1e-6)
    assert (whole.temperature, patches.temperature) == (0.07, 0.07)


@pytest.mark.parametrize("plain", [False, True], ids=["DINOv2", "DINOv3"])
@pytest.mark.parametrize("separate", [True, False])
def test_a_training_run_of_dinov2_or_3_has_heads_beside_its_backbone(tmp_path, plain, separate):
    layers, last = dino_head()
    others, of_patches = dino_head(classes=9)
    state = named(layers, last, "dino_head.")
    if separate:
        state |= named(others, of_patches, "ibot_head.")
    if plain:  # DINOv3's last layer has no weight norm
        for prefix, layer in (("dino_head", last), ("ibot_head", of_patches)):
            if state.pop(f"{prefix}.last_layer.weight_g", None) is not None:
                state.pop(f"{prefix}.last_layer.weight_v")
                state[f"{prefix}.last_layer.weight"] = layer.weight.detach()
    torch.save({"teacher": state}, tmp_path / "teacher_checkpoint.pth")
    z = torch.randn(4, 16)
    whole, patches = (load_head(tmp_path / "teacher_checkpoint.pth", patches=p) for p in (False, True))
    assert torch.allclose(whole(z), last(F.normalize(layers(z), dim=1)), atol=1e-6)
    expected = of_patches(F.normalize(others(z), dim=1)) if separate else whole(z)
    assert torch.allclose(patches(z), expected, atol=1e-6)


def test_a_file_without_a_head_for_patches_says_so(tmp_path):
    saved_dino(tmp_path / "full.pth")
    with pytest.raises(CheckpointError, match=r"no head for patches that is known here; expected .* iBOT") as caught:
        load_head(tmp_path / "full.pth", patches=True)
    assert "\n" not in str(caught.value)


SAVED = {"heads": saved_dino, "heads_ibot": saved_ibot, "retro": saved_dino}


@pytest.mark.parametrize("objective", SAVED)
def test_a_run_takes_the_head_from_its_teachers_file(tmp_path, objective):
    SAVED[objective](tmp_path / "full.pth", backbone=small_vit().backbone, width=64)
    student = {"student": "vit_tiny_patch16_224", "student_args": VIT} if objective == "heads_ibot" else {}
    settings = SMALL | student | {"objective": objective, "epochs": 1, "out": tmp_path / "run"}
    done = ssl_kd.distill(tmp_path / "full.pth", images=small_images(), **settings)
    assert done.last["gradient_norm"] > 0
    if objective == "heads_ibot":
        assert done.last["masked_head"] > 0
    again = ssl_kd.distill(tmp_path / "full.pth", images=small_images(), **settings)  # resumes at its end
    assert again.last == done.last


def test_msns_head_wants_the_feature_that_it_was_trained_on(tmp_path):
    saved_msn(tmp_path / "vit.pth.tar", backbone=small_vit().backbone, width=64)
    settings = SMALL | {"objective": "heads", "epochs": 1, "images": small_images(), "out": tmp_path / "run"}
    with pytest.raises(UserError, match="head reads its feature cls, not cls_prenorm; say teacher_feature cls"):
        ssl_kd.distill(tmp_path / "vit.pth.tar", **settings)
    assert ssl_kd.distill(tmp_path / "vit.pth.tar", teacher_feature="cls", **settings).last["gradient_norm"] > 0


def test_a_teacher_from_python_has_no_file_to_look_in(tmp_path):
    with pytest.raises(UserError, match="a teacher from Python has no head of its own here; name its file"):
        ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / "run", **(SMALL | {"objective": "heads"}))
    assert not (tmp_path / "run").exists()
