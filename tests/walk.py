"""Distil by every preset, in one process or in several that torchrun started, and write down losses and students.

    python tests/walk.py FOLDER OUT.pt [NAME ...]
    torchrun --standalone --nproc-per-node 2 tests/walk.py FOLDER OUT.pt [NAME ...]

One start for all presets: starting Python and gloo takes longer than a tiny run. SGD, since AdamW divides by what may be
rounding noise. Read by test_distributed.py.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from few import few
from safetensors.torch import load_file
from small_heads import VIT as WITH_HEAD
from small_heads import saved_dino, saved_ibot, small_vit

import ssl_kd
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.objectives.factory import PRESETS
from ssl_kd.runtime import distributed

CNN = ("resnet18", {"channels": [8, 8, 8, 16], "small_stem": True}, {"channels": [8, 8, 8, 8], "small_stem": True})
VIT_ARGS = {"img_size": 32, "patch_size": 8, "depth": 12, "num_heads": 2}
VIT = ("vit_tiny_patch16_224", VIT_ARGS | {"embed_dim": 16}, VIT_ARGS | {"embed_dim": 8})

# What no preset does: weights balanced by gradients, whitened and centred teachers, several teachers, stored targets, health,
# CutMix, small crops for the student, batches taken in parts.
OWN = {
    "automatic weights": {
        "objective": [
            {"term": "alignment", "projector": "mlp"},
            {"term": "correlation", "relation": "queue", "size": 16, "weight": "auto", "share": 0.5},
            {"term": "correlation", "relation": "batch", "projector": "square", "weight": "auto", "start": 1},
        ]
    },
    "whitened": {"objective": [{"term": "alignment", "projector": "bn", "space": "whitened", "distance": "mse"}]},
    "centred": {"objective": [{"term": "alignment", "projector": "bn", "space": "centred"}]},
    "several teachers": {"teachers": {"one": "default", "two": "unic"}, "teacher_drop": 0.5},
    "stored targets": {"objective": "lightly_v3", "mix": "none", "replay": 1},
    "cutmix": {"objective": "simreg", "mix": "cutmix"},
    "small crops": {"objective": "queue", "views": "multicrop"},
    "parts": {"objective": "simreg", "batch_size": 3, "accumulate": 2},
    "prototypes laid anew": {
        "objective": [
            {"term": "correlation", "relation": "prototypes", "comparison": "kd", "prototypes": 4, "refresh": 1}
        ]
    },
    "looks at held-out images": {"objective": "default", "health_images": 32, "images": 64},
}
# Several students on one pass of the teacher, and what may be between them.
GROUP = {
    "objective": "default_light",
    "students": {"a": {"arch": CNN[0], "args": CNN[2]}, "b": {"arch": CNN[0], "args": CNN[1], "seed": 1}},
}
GROUPS = {
    "several students": GROUP | {"objective": "default"},
    "several students with stored targets": GROUP | {"replay": 1, "health_images": 32, "images": 64},
    "mutual": GROUP | {"between": [{"term": "mutual", "teacher": True}]},
    "ensemble": GROUP | {"between": "ensemble"},
    "online_neighbours": GROUP | {"between": [{"term": "online_neighbours", "neighbours": 2}]},
    "assistants": GROUP
    | {
        "between": [
            {"term": "assistant", "assistant": "b", "start": 1},
            {"term": "residual_assistant", "student": "a", "assistant": "b"},
        ]
    },
}
CASES = {name: {"objective": few(name)} for name in PRESETS} | OWN | GROUPS
FILES = {
    "heads": saved_dino,
    "heads_ibot": saved_ibot,
    "retro": saved_dino,
}  # with the head that the teacher was trained with


def teacher(arch, args, seed):
    """Random weights, with running statistics of something."""
    torch.manual_seed(seed)
    encoder = ssl_kd.build(arch, **args).train()
    encoder(torch.rand(16, 3, 32, 32))
    return encoder.eval()


def distilled(name, folder):
    """The run folder after two epochs of 23 images in batches of 6, 6, 6 and 5."""
    arch, teacher_args, student_args = VIT if name == "attn_distill" else CNN
    if name in FILES:
        arch, teacher_args, student_args = VIT[0], WITH_HEAD, WITH_HEAD
    case = dict(CASES[name])
    if "teachers" in case:
        case["teachers"] = {
            key: {"file": teacher(arch, teacher_args, seed), "objective": objective}
            for seed, (key, objective) in enumerate(case["teachers"].items())
        }
    elif name in FILES:
        case["teacher"] = Path(folder) / f"{name} {os.environ.get('RANK', 0)}.pth"
        FILES[name](case["teacher"], backbone=small_vit().backbone, width=WITH_HEAD["embed_dim"])
    else:
        case["teacher"] = teacher(arch, teacher_args, 1)
    count = case.pop("images", 23)
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    out = Path(folder) / name.replace(" ", "_")
    settings = {
        "student": arch,
        "student_args": student_args,
        "size": 32,
        "epochs": 2,
        "batch_size": 6,
        "quiet": True,
        "precision": "32-true",
        "accelerator": "cpu",
        "log_every": 1,
        "optimizer": "sgd",
        "lr": 0.002,
        "warmup": 0,
    }
    if "students" in case:
        del settings["student"], settings["student_args"]
    ssl_kd.distill(images=images, out=out, **settings | case)
    return out


def found(run):
    """Losses, gradient norms and weights of a run's student, or of all of its students one after another."""
    folders = [run / "students" / name for name in GROUP["students"]] if (run / "students").exists() else [run]
    lines = [json.loads(line) for folder in folders for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    files = {folder.name: load_file(folder / "student.safetensors") for folder in folders}
    several = len(folders) > 1
    return {
        "losses": [line["loss"] for line in lines],
        "norms": [line["gradient_norm"] for line in lines],
        "student": {
            f"{name}.{key}" if several else key: value for name, file in files.items() for key, value in file.items()
        },
    }


def main(folder, out, *names):
    torch.set_num_threads(1)
    told = {}
    for name in names or CASES:
        run = distilled(name, folder)
        if distributed.rank() == 0:
            told[name] = found(run)
    if distributed.rank() == 0:
        torch.save(told, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
