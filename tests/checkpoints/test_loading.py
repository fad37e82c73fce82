"""Loading is all or nothing: what is wrong with a file is said, and nothing else is loaded in its place."""

import json
import os
from dataclasses import replace

import layouts
import numpy as np
import pytest
import rebuild
import safetensors
import torch

from ssl_kd.checkpoints import assembly, library_weights, loading
from ssl_kd.checkpoints.formats import FORMATS, recognise
from ssl_kd.checkpoints.formats.dino import read_vit
from ssl_kd.checkpoints.formats.weights import Place, select
from ssl_kd.checkpoints.loading import assemble, contents, convert, inspect, load_teacher
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UnknownCheckpoint, UserError
from ssl_kd.models.encoder import Encoder, build
from ssl_kd.models.preprocessing import Preprocessing


def tiny_student():
    torch.manual_seed(0)
    arch = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}
    return build("vit_tiny_patch16_224", feature="cls2_avg", **arch).eval()


# Students


def test_a_student_comes_back_to_the_last_bit(tmp_path):
    student = tiny_student()
    path = save_student(student, tmp_path / "deep" / "student.safetensors", teacher="x", epochs=3)
    back = load_teacher(path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(student(images).embedding, back(images).embedding)
    assert (back.digest, back.preprocessing, back.feature, back.arch) == (
        student.digest,
        student.preprocessing,
        student.feature,
        student.arch,
    )
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_100", "torchvision/resnet18", "ssl_kd/resnet50"])
def test_students_of_every_source_come_back(arch, tmp_path):
    student = build(arch).eval()
    back = load_teacher(save_student(student, tmp_path / "s.safetensors"))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(student(images).embedding, back(images).embedding)


def test_a_students_notes_may_have_any_length(tmp_path):
    """A safetensors file opens with its header's length, whose first byte may be that of a pickle (0x80)."""
    encoder = build("resnet18", channels=[2, 2, 2, 4])
    first_bytes = set()
    for length in range(0, 256, 8):
        file = save_student(encoder, tmp_path / "s.safetensors", note="x" * length)
        first_bytes.add(file.read_bytes()[0])
        assert inspect(file).card == {"note": "x" * length}
    assert 0x80 in first_bytes


def test_a_student_that_is_not_finite_is_not_saved(tmp_path):
    student = tiny_student()
    with torch.no_grad():
        student.backbone.norm.weight[3] = float("nan")
    with pytest.raises(UserError, match=r"not saved: 1 tensors hold NaN or infinity: norm.weight"):
        save_student(student, tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_student(tiny_student(), tmp_path / "s.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        save_student(tiny_student(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_equal_students_give_equal_files(tmp_path):
    student = tiny_student()
    files = [save_student(student, tmp_path / f"{i}.safetensors", note="ä").read_bytes() for i in range(8)]
    assert len(set(files)) == 1
    with safetensors.safe_open(tmp_path / "0.safetensors", "pt") as file:  # as the library itself reads it
        assert all(torch.equal(file.get_tensor(n), t) for n, t in student.backbone.state_dict().items())


def test_a_module_from_python_cannot_be_saved_by_name(tmp_path):
    encoder = Encoder.from_module(torch.nn.Flatten(), dim=12)
    with pytest.raises(UserError, match="has no name to rebuild it by"):
        save_student(encoder, tmp_path / "s.safetensors")


# What a file says of its pixels


def resnet_with(record, tmp_path):
    tree = {"state_dict": layouts.prefixed(layouts.resnet("resnet18").state_dict(), "module.encoder_q.")}
    return layouts.save(tree | {"preprocessing": record}, "zip", tmp_path)


@pytest.mark.parametrize(
    ("record", "pixels"),
    [
        ({"size": 48}, {"size": 48, "resize": 48, "crop": 48}),
        ({"size": 48, "resize": 56, "crop": 48}, {"size": 48, "resize": 56, "crop": 48}),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}, {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}),
        ({"interpolation": "bicubic", "square": True}, {"interpolation": "bicubic", "square": True}),
        ({"something": "else"}, {}),
        ("text", {}),
    ],
)
def test_a_files_own_record_of_its_pixels_decides(record, pixels, tmp_path):
    path = resnet_with(record, tmp_path)
    assert load_teacher(path).preprocessing == replace(Preprocessing(), **pixels)
    assert inspect(path).preprocessing == load_teacher(path).preprocessing


@pytest.mark.parametrize(
    "record", [{"size": 0}, {"size": "32"}, {"mean": [1]}, {"std": 3}, {"crop": 10**9}, {"square": 1}, {"resize": [1]}]
)
def test_a_record_of_pixels_that_cannot_be_is_an_error(record, tmp_path):
    with pytest.raises(BrokenCheckpoint, match="its record of the pixels cannot be used") as error:
        load_teacher(resnet_with(record, tmp_path))
    assert str(error.value).isprintable()


# What people pass by mistake


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.pth", "no such file"),
        ("dino_vits61", r"no such name in the zoo. Did you mean dino_vits16"),
        ("torchvision/resnet81", r"Did you mean resnet18"),
        ("timm/resnet81", r"Did you mean resnet18"),
        ("a\0b", "no such file"),
    ],
)
def test_names_that_are_nothing_are_said_to_be(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as error:
        load_teacher(name)
    assert str(error.value).isprintable()


def test_a_mistyped_file_is_met_with_the_one_that_lies_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lite0.safetensors", "teacher.safetensors"):
        (tmp_path / name).touch()
    for given, meant in (
        ("lit0.safetensors", "lite0.safetensors"),
        (f"{tmp_path}/lite0.pth", f"{tmp_path}/lite0.safetensors"),
    ):
        for read_it in (load_teacher, inspect):
            with pytest.raises(UserError, match="no such file") as error:
                read_it(given)
            assert str(error.value).endswith(f"Did you mean {meant}?")
    with pytest.raises(UserError, match=r"in the zoo\.$"):
        load_teacher("x.safetensors")


def test_a_folder_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        load_teacher(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="a device or a pipe"):
        load_teacher(tmp_path / "pipe")


def test_an_unknown_kind_shows_its_keys_and_the_way_out(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {"layers.0.w": torch.ones(1), "layers.1.w": torch.ones(1)}}, path)
    with pytest.raises(UnknownCheckpoint, match=r"First keys: model/layers.0.w, model/layers.1.w.*format="):
        load_teacher(path)
    report = inspect(path)
    assert "no known teacher format" in report.problem
    assert "model/layers. (2)" in str(report)


def test_a_bare_resnet_is_not_called_dinos(tmp_path):
    torch.save(build("resnet18").backbone.state_dict(), tmp_path / "anybodys.pth")
    found = inspect(tmp_path / "anybodys.pth")
    assert (found.format, found.origin) == ("dino_resnet", "resnet18 of unknown origin, read as DINO's")


def test_two_claims_are_not_decided_by_order(tmp_path):
    tree, _, _ = layouts.moco("resnet18")
    solo, _, _ = layouts.solo("resnet18", "backbone.")
    path = layouts.save({"state_dict": {**tree["state_dict"], **solo["state_dict"]}}, "zip", tmp_path)
    with pytest.raises(UnknownCheckpoint, match=r"2 formats claim it: moco, solo. Pass format="):
        load_teacher(path)
    assert load_teacher(path, format="solo").origin.startswith("solo-learn")


def test_a_misspelt_format_or_feature_is_met_with_the_right_one(tmp_path):
    path = save_student(tiny_student(), tmp_path / "s.safetensors")
    with pytest.raises(UserError, match="Did you mean moco"):
        load_teacher(path, format="mocoo")
    with pytest.raises(UserError, match="it has cls, avg"):
        load_teacher(path, feature="clz")
    with pytest.raises(UserError, match="no feature 'cls3'"):
        load_teacher(path, feature="cls3")


@pytest.mark.parametrize("name", FORMATS)
def test_a_forced_format_on_another_file_is_an_error_and_no_half_load(name, tmp_path):
    tree = {"state_dict": {"a.weight": torch.ones(2)}, "teacher": {"backbone.b": torch.ones(1)}}
    path = layouts.save(tree, "zip", tmp_path)
    with pytest.raises(CheckpointError) as error:
        load_teacher(path, format=name)
    assert str(error.value).isprintable()


# Mistakes that other loaders make, each of which would still give features of the right shape


def golden(name, tmp_path):
    manifest = rebuild.manifests()[name]
    file = contents(rebuild.write(manifest, tmp_path))
    return manifest, file, convert(file, recognise(file))


def off(manifest, encoder, key):
    """By how many times the allowed error a feature is off."""
    feature, _, text = key.partition("@")
    x = rebuild.batch(manifest, tuple(map(int, text.split("x"))))
    with torch.no_grad():
        found = encoder.eval().embeddings(x * encoder.std + encoder.mean, [feature])[feature].numpy()
    reference = rebuild.expected(manifest["name"])[key]
    return np.abs(found - reference).max() / rebuild.limit(reference)


def changed(weights, **arch_args):
    return assemble(replace(weights, arch_args={**weights.arch_args, **arch_args}))


def test_six_heads_for_moco_v3_would_be_noticed(tmp_path):
    manifest, _, weights = golden("mocov3_mm_vits16", tmp_path)
    assert weights.arch_args["num_heads"] == 12
    assert off(manifest, changed(weights, num_heads=6), "cls@224x224") > 100


def test_the_student_for_the_teacher_would_be_noticed(tmp_path):
    manifest, file, weights = golden("dino_vitt16_train", tmp_path)
    student = {n: t.contiguous() for n, t in select(file.state("student"), "module.backbone.").items()}
    assert student.keys() == weights.state.keys()
    assert off(manifest, assemble(read_vit(file, Place(("student",), "module.backbone.", student))), "cls@96x96") > 100


def test_a_wrong_epsilon_would_be_noticed(tmp_path):
    manifest, _, weights = golden("dino_vits16_pretrain", tmp_path)
    assert off(manifest, assemble(weights), "cls4@224x224") < 0.2
    assert off(manifest, changed(weights, norm_eps=1e-5), "cls4@224x224") > 1


@pytest.mark.parametrize("positions", ["antialias", "size", "corners"])
def test_a_wrong_interpolation_would_be_noticed(positions, tmp_path):
    manifest, _, weights = golden("dino_vitt16_train", tmp_path)
    assert off(manifest, changed(weights, positions=positions), "cls@96x96") > 10


def test_a_wrong_stem_padding_would_be_noticed(tmp_path):
    manifest, _, weights = golden("simclr_solo_r18_cifar", tmp_path)
    assert weights.arch_args["stem_padding"] == 2
    assert off(manifest, changed(weights, stem_padding=1), "pool@32x32") > 10


def without(tree, *starts):
    return {name: tensor for name, tensor in tree.items() if not name.startswith(starts)}


@pytest.mark.parametrize("block", ["blocks.5.", "blocks.11.", "blocks.0.mlp."])
def test_a_vit_that_lost_a_block_is_refused(block, tmp_path):
    """Also the last one, after which the rest still is a network."""
    tree = layouts.vit(base="vit_tiny_patch16_224", embed_dim=192, depth=12, num_heads=3).state_dict()
    path = layouts.save(without(tree, block), "zip", tmp_path)
    with pytest.raises(BrokenCheckpoint, match=rf"a ViT of width 192 with 12 blocks lacks .* tensors: {block}"):
        load_teacher(path)
    assert "lacks" in inspect(path).problem


@pytest.mark.parametrize("lost", ["layer2.1.", "layer4.1.", "layer3.", "bn1.running_mean", "layer1.0.conv2."])
def test_a_resnet_that_lost_something_is_refused(lost, tmp_path):
    tree = layouts.resnet("resnet18").state_dict()
    with pytest.raises(BrokenCheckpoint, match=r"lacks|no known ResNet has"):
        load_teacher(layouts.save(without(tree, lost), "zip", tmp_path))


@pytest.mark.parametrize("half", [0, 1])
def test_half_a_state_dict_is_refused(half, tmp_path):
    tree = list(layouts.vit().state_dict().items())
    middle = len(tree) // 2
    path = layouts.save(dict(tree[:middle] if half == 0 else tree[middle:]), "zip", tmp_path)
    with pytest.raises(CheckpointError):
        load_teacher(path)


def test_a_tensor_too_many_is_refused(tmp_path):
    tree = {**layouts.vit().state_dict(), "blocks.0.adapter.weight": torch.ones(3)}
    with pytest.raises(BrokenCheckpoint, match=r"has no place for 1 tensors: blocks.0.adapter.weight"):
        load_teacher(layouts.save(tree, "zip", tmp_path))


@pytest.mark.parametrize("change", [lambda t: t[:, :, :-1], lambda t: t.long(), lambda t: t[0]])
def test_a_tensor_of_another_shape_or_type_is_refused(change, tmp_path):
    tree = layouts.resnet("resnet18").state_dict()
    tree["layer3.0.conv2.weight"] = change(tree["layer3.0.conv2.weight"]).contiguous()
    with pytest.raises(BrokenCheckpoint):
        load_teacher(layouts.save(tree, "zip", tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_reported(value, tmp_path):
    tree = layouts.vit().state_dict()
    tree["blocks.1.mlp.fc1.weight"][2, 3] = value
    path = layouts.save(tree, "zip", tmp_path)
    with pytest.raises(BrokenCheckpoint, match=r"1 of its tensors hold NaN or infinity: blocks.1.mlp.fc1.weight"):
        load_teacher(path)
    assert "NaN or infinity" in inspect(path).problem


def test_large_finite_weights_are_not_mistaken_for_infinite_ones(tmp_path):
    tree = layouts.vit().state_dict()
    tree["blocks.1.mlp.fc1.weight"].fill_(3e38)
    load_teacher(layouts.save(tree, "zip", tmp_path))


@pytest.mark.parametrize("container", ["zip", "safetensors"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_loaded_as_float32(kind, container, tmp_path):
    tree = {name: tensor.to(kind) for name, tensor in layouts.vit().state_dict().items()}
    path = layouts.save(tree, container, tmp_path)
    encoder = load_teacher(path)
    assert all(torch.equal(t, tree[name].float()) for name, t in encoder.backbone.state_dict().items())
    assert inspect(path).digest == encoder.digest
    tree["cls_token"] = torch.full_like(tree["cls_token"].float(), float("nan")).to(kind)
    with pytest.raises(BrokenCheckpoint, match="1 of its tensors hold NaN or infinity: cls_token"):
        load_teacher(layouts.save(tree, container, tmp_path))


def test_half_precision_files_are_loaded_as_float32(tmp_path):
    tree = {name: tensor.half() for name, tensor in layouts.vit().state_dict().items()}
    encoder = load_teacher(layouts.save(tree, "zip", tmp_path))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder.digest == inspect(tmp_path / "x.pth").digest


def test_batch_norm_counters_may_lack(tmp_path):
    """torch before 0.4.1 kept none."""
    tree = layouts.resnet("resnet18").state_dict()
    whole = load_teacher(layouts.save(tree, "zip", tmp_path))
    old = {name: tensor for name, tensor in tree.items() if not name.endswith("num_batches_tracked")}
    assert load_teacher(layouts.save(old, "zip", tmp_path)).digest == whole.digest


# Damage


def places(size, count, rng):
    """Where to damage a file: half of it in the bookkeeping at both ends."""
    ends = rng.integers(0, min(3000, size), count // 4), size - 1 - rng.integers(0, min(6000, size), count // 4)
    return [int(i) for i in np.concatenate([*ends, rng.integers(0, size, count - 2 * (count // 4))])]


def damaged(data, rng, count):
    """Truncations and bit flips of some bytes."""
    for cut in places(len(data), count, rng):
        yield data[:cut]
    for place in places(len(data), count, rng):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)


def tried(path):
    """The Encoder, or None and why not. Only errors meant for people are caught."""
    try:
        return load_teacher(path), ""
    except UserError as error:
        return None, str(error)


DAMAGED = {
    "DINO": lambda folder: layouts.save(layouts.dino_vit()[0], "zip", folder),
    "DINO, old container": lambda folder: layouts.save(layouts.dino_vit()[0], "legacy", folder),
    "DINO, training": lambda folder: layouts.save(layouts.dino_vit_full()[0], "zip", folder),
    "Hugging Face": lambda folder: layouts.save(layouts.huggingface(True)[0], "safetensors", folder),
    "student": lambda folder: save_student(tiny_student(), folder / "s.safetensors"),
}
# These carry sums over their values; the others can only say by the digest that they are not what they were.
SUMMED = ("DINO", "DINO, training", "student")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("what", DAMAGED)
def test_damage_ends_in_a_typed_error_or_in_an_honest_digest(what, tmp_path):
    with torch.no_grad():
        path = DAMAGED[what](tmp_path)
    data, whole = path.read_bytes(), load_teacher(path)
    whole_state = whole.backbone.state_dict()
    rng = np.random.default_rng(0)
    refused = 0
    for mutant in damaged(data, rng, 40):
        path.write_bytes(mutant)
        encoder, complaint = tried(path)
        if encoder is None:
            assert complaint.startswith(str(path))
            assert complaint.isprintable()
            refused += 1
            continue
        state = encoder.backbone.state_dict()
        equal = all(torch.equal(state[name], whole_state[name]) for name in whole_state if "num_batches" not in name)
        assert equal == (encoder.digest == whole.digest)
        assert equal or what not in SUMMED
        assert all(bool(t.isfinite().all()) for t in state.values())
    assert refused >= 40  # every truncation at least


# A file that is written while it is read


def contents_of(kind, folder):
    """A file that is open and whose tensors are not read yet."""
    with torch.no_grad():
        path = DAMAGED[kind](folder)
    return path, contents(path)


@pytest.mark.parametrize("left", [0, 4096])
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_is_cut_while_it_is_read_is_one_line(kind, left, tmp_path):
    path, file = contents_of(kind, tmp_path)
    os.truncate(path, left)
    with pytest.raises(CheckpointError, match="was cut while it was read") as error:
        convert(file, recognise(file))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_is_written_over_while_it_is_read_is_not_mixed_with_the_new_one(kind, tmp_path):
    path, file = contents_of(kind, tmp_path)
    with open(path, "r+b") as out:
        out.write(path.read_bytes())
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        convert(file, recognise(file))


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_is_replaced_while_it_is_read_is_read_to_the_end(kind, tmp_path):
    path, file = contents_of(kind, tmp_path)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(b"another")
    found = convert(file, recognise(file))
    path.write_bytes(whole)
    assert inspect(path).digest == loading.digest_of(found.arch, found.arch_args, found.state)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_only_the_branch_that_is_used_is_read(container, tmp_path, monkeypatch):
    tree, _, _ = layouts.dino_vit_full()
    path = layouts.save({**tree, "optimizer": {"moment": torch.zeros(1_000_000)}}, container, tmp_path)
    read, count = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda *given: count.append(read(*given)) or count[-1])
    load_teacher(path)
    assert sum(count) < path.stat().st_size - 4_000_000


# Records that a forger wrote, with sums that match

FORGED = [None, 0, -1, 1e308, float("inf"), float("nan"), 2**63, 10**400, "", "x\x1b[31m\n", [], {}, {"a": 1}, True]
FORGED += ["\ud800", [1, 2, 3], [float("nan")] * 3, [10**400] * 3, [-1.0] * 3, "vit_base_patch16_224", "hf-hub:a/b"]


def forged(path, change):
    """The student file with a changed record, whose check sum fits."""
    import hashlib

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    record = json.loads(head["__metadata__"]["ssl_kd"])
    change(record)
    text = json.dumps(record)
    head["__metadata__"] |= {"ssl_kd": text, "ssl_kd_sha256": hashlib.sha256(text.encode()).hexdigest()}
    raw = json.dumps(head).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])


FIELDS = [*((name,) for name in ("arch", "arch_args", "feature", "dim", "preprocessing", "origin", "digest", "card"))]
FIELDS += [("preprocessing", name) for name in ("mean", "std", "size", "resize", "crop", "interpolation", "new\x1b")]
FIELDS += [("arch_args", name) for name in ("depth", "embed_dim", "num_heads", "img_size", "new\x1b")]
FIELDS += [("card", "name\x1b[31m\nSAFE: yes")]


@pytest.mark.parametrize("place", FIELDS, ids=[".".join(map(ascii, place)) for place in FIELDS])
def test_no_value_in_a_students_record_escapes_as_anything_but_one_line(place, tmp_path):
    whole = save_student(tiny_student(), tmp_path / "s.safetensors", teacher="x").read_bytes()
    path = tmp_path / "s.safetensors"
    for value in FORGED:

        def change(record, value=value):
            *above, last = place
            for name in above:
                record = record[name]
            record[last] = value

        path.write_bytes(whole)
        forged(path, change)
        _, complaint = tried(path)
        assert complaint.isprintable(), value
        try:
            shown = str(inspect(path))
        except CheckpointError as error:
            shown = str(error)
        assert all(line.isprintable() for line in shown.split("\n")), value
        assert "\nSAFE" not in shown


# Reports


def test_a_report_says_everything_in_text_and_json(tmp_path):
    path = layouts.save(layouts.dino_vit_full()[0], "zip", tmp_path)
    report = inspect(path)
    text = str(report)
    for part in ("dino_full", "DINO ViT of width 128", "teacher/backbone.", "cls, 128 numbers", "0.485", "bicubic"):
        assert part in text
    assert "student/module.backbone. (30), teacher/head. (1)" in text
    whole = json.loads(report.to_json())
    assert whole["format"] == "dino_full"
    assert len(whole["used"]) == len(whole["expected"]) == 30
    assert "student/module.backbone.cls_token" in whole["dropped"]
    assert whole["preprocessing"]["interpolation"] == "bicubic"


def test_inspect_builds_the_network_without_memory_for_its_numbers(tmp_path, monkeypatch):
    path = layouts.save(layouts.moco("resnet18")[0], "zip", tmp_path)
    make, built = assembly.make, []
    monkeypatch.setattr(assembly, "make", lambda *given: built.append(make(*given)) or built[-1])
    assert inspect(path).problem is None
    assert {tensor.device.type for network in built for tensor in network.state_dict().values()} == {"meta"}


def test_a_student_shows_its_card(tmp_path):
    path = save_student(tiny_student(), tmp_path / "s.safetensors", teacher="dino_vits16", epochs=3)
    report = inspect(path)
    assert report.card == {"teacher": "dino_vits16", "epochs": 3}
    assert "dino_vits16" in str(report)


# Published by the libraries themselves


def test_a_name_of_the_zoo_is_fetched_and_loaded(tmp_path, monkeypatch):
    from ssl_kd.checkpoints import zoo

    path = layouts.save(layouts.dino_vit()[0], "zip", tmp_path)
    monkeypatch.setattr(zoo, "fetch", {"dino_vits16": path}.__getitem__)
    monkeypatch.chdir(tmp_path)
    assert load_teacher("dino_vits16").origin.startswith("DINO ViT")


def test_timm_weights_come_with_timm_preprocessing(monkeypatch):
    import timm

    made = timm.create_model("resnet18", num_classes=0)
    real = timm.create_model

    def create(name, pretrained=False, **options):
        return made if library_weights else real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    encoder = load_teacher("timm/resnet18.a1_in1k")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = made.eval()((images - encoder.mean) / encoder.std)
    torch.testing.assert_close(encoder(images).embedding, want)
    config = made.pretrained_cfg
    assert encoder.preprocessing.mean == tuple(config["mean"])
    assert encoder.preprocessing.size == config["input_size"][-1]


def test_torchvision_weights_come_with_torchvision_preprocessing(monkeypatch):
    from torchvision import models

    made = models.resnet18(weights=None)
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **options: made.state_dict())
    encoder = load_teacher("torchvision/resnet18")
    made.fc = torch.nn.Identity()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).embedding, made.eval()((images - encoder.mean) / encoder.std))
    assert encoder.preprocessing == Preprocessing()


def test_weights_that_cannot_be_had_are_one_line(monkeypatch):
    import timm

    def fail(*args, **options):
        if options.get("pretrained"):
            raise ConnectionError("no\nnetwork")
        return torch.nn.Identity()

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(library_weights, "make", lambda name, args: None)
    with pytest.raises(CheckpointError, match="timm/resnet18: its weights could not be had: no"):
        load_teacher("timm/resnet18")
