"""The other side of `benchmarks.lightly_train`: runs under an interpreter that has lightly-train and timm, not ssl_kd.

    /path/to/python -I benchmarks/lightly_train_worker.py FOLDER

FOLDER holds request.json and the tensors it names; the answer is answer.json (and student.safetensors) beside them.
lightly-train is AGPL: it stays in this process, which shares files with us and no code. Everything it does here is its
own: its data set, transforms, mix-up, queue, loss, optimiser, schedule and trainer. Two things had to be added:

- `method="distillation"` (v3) takes a teacher as a `ModelWrapper`: `Teacher` is one, which renormalises pixels (theirs
  come with ImageNet's statistics) and pools as the teacher's authors do (class token or mean).
- `method="distillationv1"` knows only its DINO teachers by name: its `get_teacher` is replaced by one that returns ours.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lightly_train
import psutil
import timm
import torch
from lightly_train._methods.distillation import distillation as v1
from lightly_train._methods.distillationv3 import distillationv3 as v3
from lightly_train._methods.method import Method
from lightly_train._models import package_helpers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(recipe: dict) -> nn.Module:
    """A timm network with no classifier, as ssl_kd.models.factory makes it."""
    args = {key: tuple(v) if isinstance(v, list) else v for key, v in recipe["args"].items()}
    small_stem, padding = args.pop("small_stem", False), args.pop("stem_padding", 1)
    conv_stem = args.pop("conv_stem", False)
    model = timm.create_model(recipe["arch"], pretrained=False, num_classes=0, **args)
    if small_stem:
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=padding, bias=False)
        model.maxpool = nn.Identity()
    if conv_stem:
        widths = (3, *(model.embed_dim // part for part in (8, 4, 2, 1)))
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        model.patch_embed.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], widths[-1], 1))
    return model


class Teacher(nn.Module):
    """A frozen timm network as lightly-train's ModelWrapper: a map (B, D, H, W) and an embedding (B, D, 1, 1)."""

    def __init__(self, recipe: dict, weights: Path):
        super().__init__()
        self.model = network(recipe)
        self.model.load_state_dict(load_file(weights), strict=True)
        self.feature, self.embed_dim = recipe["feature"], self.model.num_features
        (mean, std), (own_mean, own_std) = IMAGENET, (recipe["mean"], recipe["std"])
        scale = [a / b for a, b in zip(std, own_std, strict=True)]
        shift = [(a - b) / c for a, b, c in zip(mean, own_mean, own_std, strict=True)]
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1))

    def feature_dim(self) -> int:
        return self.embed_dim

    def get_model(self) -> nn.Module:
        return self.model

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        out = self.model.forward_features(x * self.scale + self.shift)
        if out.ndim == 4:
            return {"features": out}
        patches = out[:, self.model.num_prefix_tokens :]
        side = round(patches.shape[1] ** 0.5)
        return {"features": patches.transpose(1, 2).unflatten(2, (side, side)), "cls_token": out[:, 0]}

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        pooled = x["cls_token"] if self.feature == "cls" else x["features"].mean((2, 3))
        return {"pooled_features": pooled[:, :, None, None]}

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_pool(self.forward_features(x))["pooled_features"].flatten(1)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as lightly-train's transforms hand them out."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return (pixels - mean) / std


class Clock:
    """When each training step ended: seconds by the wall, and of processor, data workers included."""

    def __init__(self):
        self.ends: list[tuple[float, float]] = []
        theirs = Method.on_train_batch_end

        def on_train_batch_end(method, outputs, batch, batch_idx):
            theirs(method, outputs, batch, batch_idx)
            self.ends.append((time.perf_counter(), cpu_seconds()))

        Method.on_train_batch_end = on_train_batch_end


def cpu_seconds() -> float:
    """Of this process and of its children, living or not."""
    process = psutil.Process()
    living = [child.cpu_times() for child in process.children(recursive=True)]
    own = process.cpu_times()
    return own.user + own.system + own.children_user + own.children_system + sum(c.user + c.system for c in living)


def distil(folder: Path, request: dict) -> dict:
    """Train the student by lightly-train's own recipe; save its weights, and what it says of the probe's pixels."""
    torch.manual_seed(request["seed"])
    student = network(request["student"])
    teacher = Teacher(request["teacher"], folder / "teacher.safetensors").eval().requires_grad_(False)
    probe = load_file(folder / "probe.safetensors")
    torch.testing.assert_close(teacher(normalised(probe["pixels"])), probe["teacher"], rtol=1e-3, atol=1e-3)
    method_args: dict = {}
    if request["method"] == "distillationv1":
        v1.get_teacher = lambda *_, **__: teacher
    else:
        method_args["teacher"] = teacher
    count = sum(path.is_file() for path in Path(request["images"]).rglob("*"))
    clock, began, used = Clock(), time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as out:
        lightly_train.pretrain(
            out=f"{out}/run",
            data=request["images"],
            model=student,
            method=request["method"],
            method_args=method_args or None,
            epochs=max(1, -(-request["steps"] // (count // request["batch"]))),
            batch_size=request["batch"],
            num_workers=request["workers"],
            precision=request["precision"],
            accelerator=request["accelerator"],
            devices=1,
            seed=request["seed"],
            transform_args={"image_size": (request["size"], request["size"])},
            trainer_args={"max_steps": request["steps"]},
        )
    whole, cpu = time.perf_counter() - began, cpu_seconds() - used
    student.cpu().eval()
    save_file({name: t.contiguous() for name, t in student.state_dict().items()}, folder / "student.safetensors")
    with torch.no_grad():
        wrapped = package_helpers.get_wrapped_model(student, num_input_channels=3)
        said = wrapped.forward_pool(wrapped.forward_features(normalised(probe["pixels"])))["pooled_features"]
    save_file({"student": said.flatten(1).contiguous()}, folder / "said.safetensors")
    steady = clock.ends[min(3, len(clock.ends) - 1) :]  # threads, workers and memory have settled
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(steady)]
    return {
        "steps": len(clock.ends),
        "seconds": whole,
        "cpu_seconds": cpu,
        "images_per_second": request["batch"] * len(clock.ends) / whole,
        # By the median step, so without the beginnings of epochs and checkpoints, which are counted above.
        "images_per_second_steady": request["batch"] / statistics.median(gaps) if gaps else None,
        "cpu_seconds_per_step": (steady[-1][1] - steady[0][1]) / len(gaps) if gaps else None,
    }


class Told(nn.Module):
    """A network that answers what it was told to, step by step."""

    def __init__(self, embeddings: Tensor, maps: Tensor):
        super().__init__()
        self.embeddings, self.maps, self.step = embeddings, maps, 0
        self.weight = nn.Parameter(torch.zeros(1))
        self.embed_dim = embeddings.shape[2]

    def feature_dim(self) -> int:
        return self.embed_dim

    def get_model(self) -> nn.Module:
        return self

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.step += 1
        return {"features": self.maps[self.step - 1]}

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pooled_features": self.embeddings[self.step - 1][:, :, None, None]}

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_pool(self.forward_features(x))["pooled_features"].flatten(1)


def losses(folder: Path, request: dict) -> dict:
    """The losses of lightly-train's own training steps, when its networks say what the file holds."""
    from lightly_train._models.embedding_model import EmbeddingModel

    given = load_file(folder / "features.safetensors")
    student, teacher = (Told(given[f"{who}_embeddings"], given[f"{who}_maps"]) for who in ("student", "teacher"))
    embedding = EmbeddingModel(student)
    common = {"optimizer_args": None, "embedding_model": embedding, "global_batch_size": 8, "num_input_channels": 3}
    if request["method"] == "distillationv1":
        v1.get_teacher = lambda *_, **__: teacher
        method = v1.Distillation(v1.DistillationArgs(queue_size=request["queue"]), **common)
        heads = {"global": method.student_projection_head}
    else:
        method = v3.DistillationV3(v3.DistillationV3Args(queue_size=request["queue"], teacher=teacher), **common)
        heads = {"global": method.student_projection_head_global, "local": method.student_projection_head_local}
    for name, head in heads.items():
        head.load_state_dict({"weight": given[f"head_{name}.weight"], "bias": given[f"head_{name}.bias"]})
    images = torch.zeros(given["student_embeddings"].shape[1], 3, 8, 8)
    steps = range(len(given["student_embeddings"]))
    found = []
    for step in steps:
        loss = method.training_step_impl({"views": [images]}, step).loss
        loss.backward()  # now: the next step changes the queue in place
        found.append(loss.item())
    save_file({f"head_{name}": head.weight.grad for name, head in heads.items()}, folder / "gradients.safetensors")
    return {"losses": found}


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    torch.set_num_threads(request.get("threads", 1))
    answer = {"distil": distil, "losses": losses}[request["verb"]](folder, request)
    answer["lightly_train"] = lightly_train.__version__
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
