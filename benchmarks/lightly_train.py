"""The outside reference: lightly-train distils the same teacher into the same student on the same images.

    python3 -m venv ltenv && ltenv/bin/pip install lightly-train timm
    python -m benchmarks.lightly_train losses --python ltenv/bin/python
    python -m benchmarks.lightly_train distil --python ltenv/bin/python --teacher FILE --student resnet18 \\
        --images FOLDER --steps 1000 --batch 128 --size 40 --out student.safetensors

`losses` compares our presets `lightly_v1` and `lightly_v3` with its training steps on equal features, from an empty
queue on, images seen again. `distil` runs its own recipe and writes a student that `load_teacher` and eval read. It is
AGPL and lives in an interpreter of its own (`lightly_train_worker.py`): nothing here imports or copies it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.errors import UserError
from ssl_kd.models.encoder import Encoder, build
from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from ssl_kd.objectives.factory import build_objective, terms_of
from ssl_kd.objectives.inputs import Widths
from ssl_kd.types import Features, ViewBatch

WORKER = Path(__file__).with_name("lightly_train_worker.py")
# Our preset, and the method of lightly-train that it is compared with; "distillation" is its newest, v3.
METHODS = {"lightly_v1": "distillationv1", "lightly_v3": "distillation"}
# Nothing is sent or fetched.
QUIET = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1"}


def ask(python: str, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Run the worker under `python` on a folder; its answer, or UserError with its last words."""
    (folder / "request.json").write_text(json.dumps(request))
    environ = {"LIGHTLY_TRAIN_CACHE_DIR": str(folder / "cache")} | dict(os.environ) | QUIET
    try:
        # -I: neither this folder, whose file is called lightly_train too, nor PYTHONPATH is looked at.
        command = [python, "-I", str(WORKER), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    except OSError as error:
        raise UserError(
            f"{python}: cannot be run ({error.strerror}); name a python with lightly-train in it"
        ) from error
    if done.returncode:
        raise UserError(f"lightly-train failed under {python}: {' '.join(done.stderr.split()[-60:])}")
    return dict(json.loads((folder / "answer.json").read_text()))


def recipe(encoder: Encoder) -> dict[str, Any]:
    """How the worker rebuilds a network; UserError for what timm alone cannot make."""
    source, _, name = encoder.arch.rpartition("/")
    ours = {"norm_eps", "interleave"} & set(encoder.arch_args)
    if source not in ("", "timm") or ours or encoder.feature not in ("pool", "cls", "avg"):
        raise UserError(
            f"{encoder.arch}, feature {encoder.feature}: only timm networks read by pool, cls or avg can be rebuilt beside us"
        )
    args = {key: value for key, value in encoder.arch_args.items() if key != "positions"}
    contract = encoder.preprocessing
    return {"arch": name, "args": args, "feature": encoder.feature, "mean": contract.mean, "std": contract.std}


def distil(
    python: str,
    teacher: str | Path,
    images: str | Path,
    steps: int,
    out: str | Path,
    student: str = "resnet18",
    student_args: dict[str, Any] | None = None,
    teacher_args: dict[str, Any] | None = None,
    batch: int = 128,
    size: int = 224,
    crop_ratio: float | None = None,
    method: str = "distillation",
    precision: str = "auto",
    accelerator: str = "cpu",
    workers: int | str = "auto",
    threads: int = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """Distil by lightly-train's own recipe and save the student to `out`; its speeds and settings.

    Both networks must say the same on both sides, of the same pixels: the teacher before, the student afterwards.
    teacher_args: what `load_teacher` is told of a file that says too little of itself.
    images: a folder of files. Its views are its own (one per image and step, mixed up), of `size` pixels; everything
    that is not an argument here keeps lightly-train's default. A ViT student is read by its mean patch token, which
    is what lightly-train trains.
    """
    source = load_teacher(teacher, **(teacher_args or {}))
    contract = replace(source.preprocessing.at(size, crop_ratio), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    ours = build(student, preprocessing=contract, **(student_args or {}))
    if ours.feature == "cls":
        ours = build(student, feature="avg", preprocessing=contract, **(student_args or {}))
    settings = {"method": method, "steps": steps, "batch": batch, "size": size, "seed": seed}
    settings |= {"precision": precision, "accelerator": accelerator, "workers": workers, "threads": threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({k: t.contiguous() for k, t in source.backbone.state_dict().items()}, folder / "teacher.safetensors")
        pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
        save_file({"pixels": pixels, "teacher": source(pixels).embedding}, folder / "probe.safetensors")
        request = {"verb": "distil", "teacher": recipe(source), "student": recipe(ours), **settings}
        request["images"] = str(Path(images).resolve())
        answer = ask(python, folder, request)
        ours.eval().backbone.load_state_dict(load_file(folder / "student.safetensors"), strict=True)
        with torch.no_grad():
            teacher_outputs = load_file(folder / "said.safetensors")["student"]
            torch.testing.assert_close(ours(pixels).embedding, teacher_outputs, rtol=1e-3, atol=1e-3)
    if answer["steps"] != steps:
        raise UserError(f"lightly-train made {answer['steps']} steps where {steps} were asked for")
    ours.origin = f"distilled from {source.origin} by lightly-train {answer['lightly_train']}"
    save_student(ours, out, teacher=source.origin, teacher_digest=source.digest, **settings)
    return settings | answer | {"out": str(out)}


def compare_losses(python: str, preset: str, steps: int = 7, batch: int = 6, queue: int = 16, seed: int = 0) -> dict:
    """Ours and theirs on equal features: {"ours", "theirs": losses per step, "difference", "gradient_difference"}.

    The queue starts empty, overflows after three steps, and each image comes again after three. The student's map is
    finer than the teacher's by a factor that is no power of two, the hardest case of bringing it onto one grid.
    """
    rng = torch.Generator().manual_seed(seed)

    def features(width: int, side: int) -> tuple[Tensor, Tensor]:
        shape = (steps, batch, width)
        return torch.randn(shape, generator=rng), torch.randn((*shape, side, side), generator=rng)

    (s, s_map), (t, t_map) = features(10, 7), features(12, 3)
    torch.manual_seed(seed)
    spec = [{**term, "size": queue} if term.get("relation") == "queue" else dict(term) for term in terms_of(preset)]
    objective = build_objective(spec, Widths(10), Widths(12))
    heads = dict(zip(("global", "local"), (term.projector for term in objective.terms.values()), strict=False))
    found = []
    for step in range(steps):
        index = np.arange(batch) + batch * (step % 3)
        student, teacher = (
            Features(z[step], maps[step].flatten(2).transpose(1, 2)) for z, maps in ((s, s_map), (t, t_map))
        )
        found.append(objective(student, teacher, ViewBatch(index, step // 3, (torch.zeros(batch, 3, 8, 8),)))[0])
    torch.stack(found).sum().backward()
    given = {"student_embeddings": s, "student_maps": s_map, "teacher_embeddings": t, "teacher_maps": t_map}
    for name, head in heads.items():
        given |= {f"head_{name}.{key}": value.contiguous() for key, value in head.state_dict().items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(given, folder / "features.safetensors")
        answer = ask(python, folder, {"verb": "losses", "method": METHODS[preset], "queue": queue})
        theirs = load_file(folder / "gradients.safetensors")
    ours = [loss.item() for loss in found]
    gaps = [(head.weight.grad - theirs[f"head_{name}"]).abs().max().item() for name, head in heads.items()]
    return {
        "ours": ours,
        "theirs": answer["losses"],
        "difference": max(abs(a - b) for a, b in zip(ours, answer["losses"], strict=True)),
        "gradient_difference": max(gaps),
        "lightly_train": answer["lightly_train"],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    losses = verbs.add_parser("losses", help="our presets against its training steps")
    run = verbs.add_parser("distil", help="its own recipe, from our teacher to our student")
    for verb in (losses, run):
        verb.add_argument("--python", required=True, help="a python with lightly-train and timm")
    run.add_argument("--teacher", required=True, help="teacher file or name")
    run.add_argument(
        "--teacher-args",
        type=json.loads,
        default={},
        help='JSON for load_teacher, e.g. \'{"arch": "tf_efficientnet_lite0", "mean": 0.5, "std": 0.5}\'',
    )
    run.add_argument("--images", required=True, help="folder of image files")
    run.add_argument("--out", required=True, help="student file to write")
    run.add_argument("--steps", type=int, required=True)
    run.add_argument("--student", default="resnet18")
    run.add_argument(
        "--student-args", type=json.loads, default={}, help="JSON, e.g. '{\"channels\": [32, 64, 128, 240]}'"
    )
    run.add_argument("--batch", type=int, default=128)
    run.add_argument("--size", type=int, default=224)
    run.add_argument("--crop-ratio", type=float, help="share that the student's centre crop keeps in eval")
    run.add_argument("--method", default="distillation", choices=sorted(METHODS.values()))
    run.add_argument("--precision", default="auto")
    run.add_argument("--accelerator", default="cpu")
    run.add_argument("--workers", default="auto", type=lambda text: text if text == "auto" else int(text))
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--seed", type=int, default=0)
    chosen = vars(parser.parse_args(argv))
    if chosen.pop("verb") == "distil":
        print(json.dumps(distil(**chosen), indent=1))
        return
    for preset, queue in itertools.product(METHODS, (16, 4)):
        told = compare_losses(chosen["python"], preset, queue=queue)
        print(
            f"{preset}, queue of {queue}, batches of 6, against lightly-train {told['lightly_train']}: "
            f"largest differences over {len(told['ours'])} steps"
        )
        print(f"  loss {told['difference']:.1e} (losses about {np.mean(told['ours']):.2f})")
        print(f"  gradient of the heads {told['gradient_difference']:.1e}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
