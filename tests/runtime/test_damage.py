"""What a run writes and reads back, damaged: one line, or the very same bits; never other weights.

Walked here: the saved state, a student's file, a student whose code is the user's, a pretrained teacher. Elsewhere, by the
same damage: stored targets (tests/distillation/test_target_cache.py), stored shards (tests/data/test_shard_cache.py), the
zoo's files and records (tests/checkpoints/test_zoo.py), parts of downloads (tests/runtime/test_download.py).
"""

import io
import os
import random
import shutil

import pytest
import torch
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.errors import UserError
from ssl_kd.pretraining.config import PretrainConfig
from ssl_kd.pretraining.trainer import pretrain
from ssl_kd.runtime.run_dir import LAST, UNREADABLE
from ssl_kd.runtime.state import load_state, save_state

FLIPS = 120  # bits of a file that are flipped, one at a time, drawn by seed


def a_state(folder, seed=0):
    """A state with every kind of thing in it."""
    drawn = torch.Generator().manual_seed(seed)
    tensors = {
        "w": torch.randn(7, 5, generator=drawn),
        "n": torch.arange(4),
        "half": torch.rand(3, generator=drawn).half(),
    }
    save_state(folder / "last.ckpt", {"step": 3 + seed, "pair": tensors, "last": {"loss": 0.5 + seed}, "why": "x" * 40})
    return folder / "last.ckpt"


def a_student(folder, seed=0):
    torch.manual_seed(seed)
    student = ssl_kd.build("resnet18", channels=[2, 2, 2, 4])
    return ssl_kd.save_student(student, folder / "student.safetensors", teacher="DINO", epochs=3)


def a_pretrained_teacher(folder, seed=0):
    settings = {
        "method": "simclr",
        "arch": "resnet18",
        "arch_args": {"channels": [2, 2, 2, 4]},
        "size": 32,
        "epochs": 1,
        "batch_size": 10,
    }
    out = folder / "teacher.pth.tar"
    return pretrain(
        PretrainConfig(**settings, seed=seed, quiet=True, precision="32-true", out=str(out)), small_images()
    )


def flat(state, path=""):
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{path}/{key}").items()}
    return {path: state.tolist() if isinstance(state, torch.Tensor) else state}


def read_student(path):
    encoder, report = ssl_kd.load_teacher(path), ssl_kd.inspect(path)
    if report.problem:
        raise UserError(report.problem)
    asked = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    about = (encoder.arch, encoder.arch_args, encoder.feature, encoder.preprocessing, encoder.origin, report.card)
    return encoder(asked).embedding.tolist(), [str(part) for part in about]


# How each kind of file is written and read; what is read must be equal, or the reader must complain.
KINDS = {
    "a saved state": (a_state, lambda path: flat(load_state(path))),
    "a student": (a_student, read_student),
    "a pretrained teacher": (a_pretrained_teacher, lambda path: read_student(path)[0]),
    "a pretrained teacher, to go on with": (a_pretrained_teacher, lambda path: flat(load_state(path))),
}
# Of a state every byte is vouched for; elsewhere padding and the like may change without a change of what is read.
EVERY_BYTE = {"a saved state", "a pretrained teacher, to go on with"}
COMPLAINTS = (UserError, *UNREADABLE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of each kind two files, and what is read from each."""
    made = {}
    for kind, (write, read) in KINDS.items():
        two = [write(tmp_path_factory.mktemp("file"), seed) for seed in (0, 1)]
        made[kind] = [(path.read_bytes(), read(path), path.name) for path in two]
        assert made[kind][0][1] != made[kind][1][1]
    return made


def damaged(sound, other):
    """Name of the damage -> bytes."""
    drawn = random.Random(0)
    for bit in [*drawn.sample(range(8 * len(sound)), FLIPS), *range(64), *range(8 * len(sound) - 64, 8 * len(sound))]:
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} of {8 * len(sound)}", bytes(data)
    for length in (0, 1, 7, 8, len(sound) // 2, len(sound) - 100, len(sound) - 1):
        yield f"cut to {length}", sound[:length]
    middle = len(sound) // 2
    yield "zeros in the middle", sound[:middle] + bytes(64) + sound[middle + 64 :]
    yield (
        "two blocks swapped",
        sound[: middle - 64] + sound[middle : middle + 64] + sound[middle - 64 : middle] + sound[middle + 64 :],
    )
    yield "the end of another", sound[:middle] + other[middle:]
    yield "longer", sound + b"more"


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "a pretrained teacher" else ()) for kind in KINDS]
)
def test_damage_is_a_complaint_or_changes_nothing(kind, files, tmp_path):
    (sound, expected, name), (other, _, _) = files[kind]
    read = KINDS[kind][1]
    unnoticed = []
    for what, data in damaged(sound, other):
        (tmp_path / name).write_bytes(data)
        try:
            found = read(tmp_path / name)
        except COMPLAINTS:
            continue
        assert found == expected, what
        unnoticed.append(what)
    assert not (unnoticed and kind in EVERY_BYTE), unnoticed
    (tmp_path / name).unlink()
    with pytest.raises(COMPLAINTS):
        read(tmp_path / name)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped in its second step, and the student of the unbroken one."""
    folder, teacher = tmp_path_factory.mktemp("runs"), small_teacher()
    whole = ssl_kd.distill(teacher, images=small_images(), out=folder / "whole", **SMALL)
    with signal_in_step(1), pytest.raises(KeyboardInterrupt):
        ssl_kd.distill(teacher, images=small_images(), out=folder / "cut", **SMALL)
    return folder / "cut", whole.student, teacher


@pytest.mark.parametrize("seed", range(6))
def test_a_run_never_goes_on_from_a_flipped_bit(seed, stopped, tmp_path):
    folder, _, teacher = stopped
    shutil.copytree(folder, tmp_path / "run")
    state = bytearray((folder / LAST).read_bytes())
    bit = random.Random(seed).randrange(8 * len(state))
    state[bit // 8] ^= 1 << bit % 8
    (tmp_path / "run" / LAST).write_bytes(state)
    with pytest.raises(UserError, match=r"last\.ckpt: the saved state is damaged .*remove it to begin anew") as caught:
        ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "run", **SMALL)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / LAST).read_bytes() == state


@pytest.mark.parametrize("kept", [("config.yaml", LAST), ("config.yaml",), (LAST, ".ssl_kd.json"), (".ssl_kd.json",)])
def test_a_run_some_of_whose_files_were_deleted_ends_with_the_same_bits(kept, stopped, tmp_path):
    folder, whole, teacher = stopped
    (tmp_path / "run").mkdir()
    for name in kept:
        shutil.copy(folder / name, tmp_path / "run" / name)
    done = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "run", **SMALL)
    assert same(whole, done.student)


def test_a_state_without_a_checksum_is_read_and_its_own_checks_are_made(stopped, tmp_path):
    """As older versions wrote it: what torch.save makes, and no word on the settings."""
    folder, whole, teacher = stopped
    shutil.copytree(folder, tmp_path / "run")
    os.unlink(tmp_path / "run/.ssl_kd.json")
    state = load_state(folder / LAST)
    del state["made_by"]
    old = io.BytesIO()
    torch.save(state, old)
    for at in range(1000, len(old.getvalue()) - 1000, len(old.getvalue()) // 9):
        data = bytearray(old.getvalue())
        data[at] ^= 64
        (tmp_path / "run" / LAST).write_bytes(data)
        try:
            assert flat(load_state(tmp_path / "run" / LAST)) == flat(state)  # padding
        except UNREADABLE:
            continue
    (tmp_path / "run" / LAST).write_bytes(old.getvalue())
    done = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "run", **SMALL)
    assert same(whole, done.student)
