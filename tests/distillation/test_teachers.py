"""The teachers' side: one line per teacher, each by its own spectacles, all of them in the card and the digests."""

import numpy as np
import pytest
import torch
import yaml
from layouts import dino_vit
from PIL import Image
from small_runs import SMALL, logged, small_images

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.distillation.config import DistillConfig, TeacherSpec, check, teacher_specs
from ssl_kd.distillation.setup import prepare
from ssl_kd.distillation.teachers import at_size, load_teachers, pruned
from ssl_kd.errors import UserError

QUICK = SMALL | {"batch_size": 4, "epochs": 1}


def tiny(seed, width=16):
    torch.manual_seed(seed)
    return ssl_kd.build("resnet18", channels=[8, 8, 8, width]).eval()


def images():
    return small_images(8)


def prefixed(encoder, prefix, **more):
    return {f"{prefix}{k}": v for k, v in encoder.backbone.state_dict().items()} | more


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four tiny networks, saved as their labs save theirs."""
    folder = tmp_path_factory.mktemp("teachers")
    moco = prefixed(tiny(1), "module.encoder_q.", **{"module.encoder_q.fc.weight": torch.randn(8, 16)})
    swav = prefixed(tiny(2, 24), "module.", **{"module.prototypes.weight": torch.randn(4, 4)})
    heads = {f"backbone.fc.{i}.weight": torch.randn(4, 4) for i in (0, 2)}
    trees = {
        "dino": dino_vit()[0],
        "moco": {"arch": "resnet18", "state_dict": moco | {"module.queue": torch.randn(4, 4)}},
        "swav": swav,
        "simclr": {"arch": "resnet18", "state_dict": prefixed(tiny(3), "backbone.", **heads)},
    }
    for name, tree in trees.items():
        torch.save(tree, folder / f"{name}.pth")
    for i in range(8):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


def test_four_teachers_from_one_config_by_the_command_line(files, tmp_path, capsys):
    lines = {name: str(files / f"{name}.pth") for name in ("moco", "swav", "simclr")}
    lines["dino"] = {"file": str(files / "dino.pth"), "objective": "simreg", "weight": 2, "size": 32}
    asked = QUICK | {
        "teachers": lines,
        "objective": "centred",
        "images": str(files),
        "teacher_drop": 0.5,
        "replay": 1,
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "four.yaml").write_text(yaml.safe_dump(asked))
    assert main(["distill", "--config", str(tmp_path / "four.yaml")]) == 0
    run = tmp_path / "run"
    record = logged(run)[0]
    assert {"dino.alignment", "moco.alignment", "moco.alignment_3", "swav.alignment", "simclr.alignment"} <= set(record)
    assert "dino.alignment_3" not in record
    kept = yaml.safe_load((run / "config.yaml").read_text())["teachers"]
    digests = {name: ssl_kd.load_teacher(files / f"{name}.pth").digest for name in ("dino", *lines)}
    assert {name: line["digest"] for name, line in kept.items()} == digests
    assert len(set(digests.values())) == 4
    readme = (run / "README.md").read_text()
    assert all(f"teacher {name}" in readme and digest in readme for name, digest in digests.items())
    assert ssl_kd.inspect(run / "student.safetensors").card["teacher_digest"] == digests
    assert len(list((run / "targets").glob("*.f16"))) == 4 + 3  # each one's embeddings, and the patches of three

    # A run's own config goes back in; with another file behind a name it does not.
    again = ["distill", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    kept["moco"]["file"] = str(files / "simclr.pth")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**asked, "teachers": kept}))
    capsys.readouterr()
    assert main(["distill", "--config", str(tmp_path / "other.yaml"), "--out", str(tmp_path / "third")]) == 2
    assert "teachers: moco: the config asks for digest" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_the_only_line_of_several_teaches_as_a_single_teacher_does(tmp_path):
    one = ssl_kd.distill(tiny(1), images=images(), out=tmp_path / "one", **QUICK)
    line = ssl_kd.distill(teachers={"only": tiny(1)}, images=images(), out=tmp_path / "line", **QUICK)
    for name, tensor in one.student.backbone.state_dict().items():
        assert torch.allclose(tensor.float(), line.student.backbone.state_dict()[name].float(), atol=1e-6), name


class Witness(torch.nn.Module):
    """Remembers the pixels that reach it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return x.mean((2, 3))


def test_each_teacher_looks_through_its_own_spectacles_at_its_own_size(tmp_path):
    plain, dark = Witness(), Witness()
    teachers = {
        "plain": {
            "file": ssl_kd.Encoder.from_module(plain, 3, ssl_kd.Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))),
            "objective": "simreg",
        },
        "dark": {
            "file": ssl_kd.Encoder.from_module(dark, 3, ssl_kd.Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)),
            "objective": "simreg",
            "size": 16,
        },
    }
    ssl_kd.distill(teachers=teachers, images=images(), out=tmp_path / "run", **QUICK)
    assert len(plain.seen) == len(dark.seen) == 3
    for a, b in zip(plain.seen, dark.seen, strict=True):
        assert a.shape[-1] == 32
        assert torch.allclose(b, (at_size(a, 16) - 0.5) / 0.25, atol=1e-5)


def test_a_teacher_without_a_size_of_its_own_sees_the_runs(tmp_path):
    config = DistillConfig(images="i", out="o", teachers={"a": tiny(1), "b": {"file": tiny(2), "size": 64}})
    parts = prepare(config, None, None, images())
    assert {n: t.size for n, t in parts.teacher_group.teachers.items()} == {"a": 224, "b": 64}
    assert parts.loader.size == 224
    assert parts.student.preprocessing.size == 224


def test_views_are_only_resized_where_a_teacher_wants_another_size():
    pixels = torch.rand(2, 3, 8, 8)
    assert at_size(pixels, 8) is pixels
    assert torch.allclose(at_size(pixels, 4).mean(), pixels.mean(), atol=0.02)
    assert at_size(pixels, 12).shape == (2, 3, 12, 12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teachers": {"a": "x.pth"}, "teacher": "y.pth"}, "several as teachers, not both"),
        ({"teachers": {"a": {"fil": "x.pth"}}}, "Did you mean file"),
        ({"teachers": {"a": {"weight": 2}}}, "a needs a file"),
        ({"teachers": {"a": {"file": "x.pth", "weight": 0}}}, "weight of a: expected a number above 0"),
        ({"teachers": {"a": {"file": "x.pth", "size": 1.5}}}, "size of a: expected a number above 0"),
        ({"teachers": {"a.b": "x.pth"}}, "name without dots"),
        ({"teachers": {1: "x.pth"}}, "name without dots"),
        ({"teachers": {1: "x.pth"}, "teacher": "y.pth"}, "several as teachers, not both"),
        *(({"teachers": {"a": file}}, "a needs a file") for file in (3, None, True, ["x.pth"], {"file": 3})),
        *(({"teachers": {"a": {"file": "x.pth", k: 3}}}, f"{k} of a: expected text") for k in ("feature", "digest")),
        ({"teachers": {"a": "x.pth"}, "teacher_drop": 1.0}, "teacher_drop: expected"),
    ],
)
def test_a_wrong_line_is_one_line(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        check(DistillConfig(images="i", out="o", **settings))
    assert "\n" not in str(caught.value)


def test_lines_take_the_runs_objective_unless_they_name_their_own():
    config = DistillConfig(objective="seed", teachers={"a": "x.pth", "b": {"file": "y.pth", "objective": "rkd"}})
    assert teacher_specs(config) == {"a": TeacherSpec("x.pth", "seed"), "b": TeacherSpec("y.pth", "rkd")}


def test_a_pruned_copy_lacks_the_smallest_weights_of_all_layers_and_leaves_the_teacher_alone():
    torch.manual_seed(1)
    teacher = ssl_kd.build("resnet18", channels=[8, 8, 8, 16]).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    copy = pruned(teacher, 0.3)
    weights = [m.weight for m in copy.network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    mine = torch.cat(
        [m.weight.flatten() for m in teacher.network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    )
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    gone = flat == 0
    assert gone.float().mean().item() == pytest.approx(0.3, abs=1e-3)
    assert mine[gone].abs().max() <= mine[~gone].abs().min()
    assert torch.equal(flat[~gone], mine[~gone])
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert copy.digest != teacher.digest
    assert set(copy.state_dict()) == set(before)


def test_a_teacher_and_its_pruned_copy_teach_together(tmp_path):
    torch.manual_seed(1)
    teacher = ssl_kd.build("resnet18", channels=[8, 8, 8, 16]).eval()
    teachers = {"whole": teacher, "pruned": {"file": teacher, "prune": 0.3}}
    done = ssl_kd.distill(images=small_images(), out=tmp_path / "run", teachers=teachers, objective="r2kd", **SMALL)
    assert {"whole.alignment", "pruned.alignment"} <= set(done.last)
    assert "pruned" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("share", [1, -0.1, "0.3", True])
def test_a_share_to_prune_that_cannot_be_is_one_line(share, tmp_path):
    with pytest.raises(UserError, match="prune of one: expected a share from 0 to below 1"):
        ssl_kd.distill(
            images=small_images(), out=tmp_path / "run", teachers={"one": {"file": "x.pth", "prune": share}}, **SMALL
        )


def test_a_mapping_names_any_architecture_by_hand_in_both_spellings(tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = str(tmp_path / "bare.safetensors")
    save_file(timm.create_model("regnetx_002").state_dict(), file)
    pixels = {"arch": "regnetx_002", "mean": [0.5, 0.5, 0.5], "std": 0.25, "size": 64}
    one = DistillConfig(images="i", out="o", teacher={"path": file, **pixels})
    other = DistillConfig(images="i", out="o", **{f"teacher_{k}": v for k, v in pixels.items()}, teacher=file)
    third = DistillConfig(images="i", out="o", teachers={"a": {"path": file, **pixels}, "b": {"file": file, **pixels}})
    assert teacher_specs(one) == teacher_specs(other)
    for config in (one, other, third):
        check(config)
    (teacher,) = load_teachers(one, None).values()
    assert (teacher.size, teacher.encoder.preprocessing.size) == (64, 64)
    assert (teacher.encoder.preprocessing.mean, teacher.encoder.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher": {"arch": "resnet18"}}, "teacher: needs a file, as in {path: FILE}"),
        ({"teacher": {"path": "x", "archh": "y"}}, "Did you mean arch"),
        ({"teacher": {"path": "x", "mean": [1, 2]}}, "teacher: mean: expected three numbers"),
        ({"teacher": {"path": "x", "arch": "y"}, "teacher_arch": "z"}, "it is in teacher as well"),
        ({"teacher": "x", "teacher_arch_args": {"a": 1}}, "teacher: arch_args: they belong to arch"),
        ({"teachers": {"a": {"path": "x", "std": "red"}}}, "teachers: a: std: expected one or three numbers"),
    ],
)
def test_a_wrong_mapping_is_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        check(DistillConfig(images="i", out="o", **settings))


def test_the_licence_of_the_teacher_travels_into_every_card(tmp_path):
    teacher = tiny(1)
    teacher.licence = "CC-BY-NC-4.0"
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", objective="simreg", **QUICK)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| licence of teacher | CC-BY-NC-4.0 |" in card
    assert "non-commercial use (CC-BY-NC-4.0)" in card
    student = done.path
    assert ssl_kd.inspect(student).licence == "CC-BY-NC-4.0"
    assert ssl_kd.load_teacher(student).licence == "CC-BY-NC-4.0"
