"""Heads of self-supervised teachers, read from files in their labs' layouts, against the formulas of these labs."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import SMALL, small_images, small_teacher
from torch import nn

import ssl_kd
from ssl_kd.checkpoints.heads import load_head
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError


def dino_head(width=16, hidden=12, bottleneck=5, classes=7):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
    )
    last = torch.nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, classes, bias=False))
    return layers, last


def saved_dino(path, prefix="module.head.", old_names=True, backbone=None, width=16):
    layers, last = dino_head(width)
    teacher = {f"{prefix}mlp.{name}": tensor for name, tensor in layers.state_dict().items()}
    names = (
        ("weight_g", "weight_v")
        if old_names
        else ("parametrizations.weight.original0", "parametrizations.weight.original1")
    )
    for name, tensor in zip(names, last.state_dict().values(), strict=True):
        teacher[f"{prefix}last_layer.{name}"] = tensor
    if backbone is not None:
        teacher |= {f"module.backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    torch.save({"teacher": teacher, "dino_loss": {"center": torch.linspace(-1, 1, 7)[None]}}, path)
    return layers, last


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


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


def test_a_run_takes_the_head_from_its_teachers_file(tmp_path):
    torch.manual_seed(1)
    encoder = ssl_kd.build("vit_tiny_patch16_224", **VIT)
    saved_dino(tmp_path / "full.pth", backbone=encoder.backbone, width=64)
    settings = SMALL | {"objective": "heads", "epochs": 1, "out": tmp_path / "run"}
    done = ssl_kd.distill(tmp_path / "full.pth", images=small_images(), **settings)
    assert done.last["gradient_norm"] > 0
    again = ssl_kd.distill(tmp_path / "full.pth", images=small_images(), **settings)  # resumes at its end
    assert again.last == done.last


def test_a_teacher_from_python_has_no_file_to_look_in(tmp_path):
    with pytest.raises(UserError, match="a teacher from Python has no head of its own here; name its file"):
        ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / "run", **(SMALL | {"objective": "heads"}))
    assert not (tmp_path / "run").exists()
