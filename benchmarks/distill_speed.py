"""How close is the training loop to the networks alone, and how far from its peers? `make bench-distill`.

    python -m benchmarks.distill_speed [--only loop-32 loop-224 usual lightly] [--python ltenv/bin/python] [--out FILE]

- loop-32, loop-224, loop-224-r50 (with a GPU, or when named): `distill` with stored targets against the student alone
  (forward, backward, step on tensors that lie ready), and online against the teacher's forward and the student's step,
  both bare.
- usual: a ResNet-50 teacher at 32 px, stored, against the script that everyone writes (fp32, DataLoader, torchvision).
- lightly: against lightly-train at 224 px, same networks, batch, loss and precision; needs --python, an interpreter
  that has it (see benchmarks.lightly_train).

Ways run in turn, A B A B; a figure is the median over turns. Every ratio is printed twice: by the wall, and by processor
time, all threads and workers counted, which other work on the machine disturbs less. A step is timed from one forward
of the student to the next, the first ones of each turn left out, so everything that a step costs is in it: waiting for
images, views, teacher, loss, checks. The teacher's weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import lightly_train
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.distillation.trainer import distill, fill_targets
from ssl_kd.models.encoder import Encoder, build, frozen
from ssl_kd.runtime.devices import resolve


@dataclass(frozen=True)
class Setting:
    """Who teaches whom on what. Batch norm's and the queue's costs are those of a real run."""

    teacher: tuple[str, dict[str, Any]]
    student: tuple[str, dict[str, Any]]
    size: int
    batch: int
    views: str
    source: tuple[int, int]  # width and height of the image files

    def network(self, which: str) -> Encoder:
        arch, args = getattr(self, which)
        encoder = build(arch, **args)
        encoder.preprocessing = encoder.preprocessing.at(self.size)
        return encoder


SMALL = {"small_stem": True}
SETTINGS = {
    "loop-32": Setting(("resnet18", SMALL), ("resnet18", SMALL | {"channels": [32, 64, 128, 240]}), 32, 128, "strong_small", (32, 32)),
    "loop-224": Setting(("vit_small_patch16_224", {}), ("resnet18", {}), 224, 32, "strong", (400, 300)),
    "loop-224-r50": Setting(("resnet50", {}), ("resnet18", {}), 224, 64, "strong", (400, 300)),
    "usual": Setting(("resnet50", SMALL), ("resnet18", SMALL), 32, 128, "strong_small", (32, 32)),
    "lightly": Setting(("vit_small_patch16_224", {}), ("resnet18", {}), 224, 32, "strong", (400, 300)),
}  # fmt: skip
GOALS = {"stored / student alone": 0.9, "online / teacher + student": 0.9, "stored / usual loop": 6.0}
GOALS |= {"online / lightly-train": 1.3, "stored / lightly-train": 2.4, "stored / its default": 5.0}


@dataclass
class Turn:
    """One turn of a way: seconds per step by the wall and by the processor, and what share of it was waiting."""

    wall: float
    cpu: float
    waited: float | None = None


class Marks:
    """Notes the clocks at every forward of a module. Steps are what lies between."""

    def __init__(self, module: torch.nn.Module, device: torch.device):
        self.device, self.notes = device, list[tuple[float, float]]()
        module.register_forward_pre_hook(lambda *_: self.note())

    def note(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.notes.append((time.perf_counter(), time.process_time()))

    def turn(self, leave_out: int) -> Turn:
        notes = self.notes[leave_out:]
        wall, cpu = ([b[i] - a[i] for a, b in itertools.pairwise(notes)] for i in (0, 1))
        return Turn(statistics.median(wall), statistics.mean(cpu))


def plant(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Synthetic photographs as JPEG files: smooth noise with grain, so that they compress like photographs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (max(size[1] // 8, 2), max(size[0] // 8, 2), 3), np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + rng.integers(
            -14, 14, (size[1], size[0], 3)
        )
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=85)
    return folder


def cpu_of_children() -> float:
    """Processor seconds of this process's living children (Linux): data workers."""
    me, total = str(os.getpid()), 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if fields[1] == me:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Bench:
    """The networks, the images and the ways of one setting."""

    def __init__(self, name: str, folder: Path, chosen: argparse.Namespace):
        self.name, self.setting, self.folder, self.chosen = name, SETTINGS[name], folder, chosen
        if chosen.batch:
            self.setting = replace(self.setting, batch=chosen.batch)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = resolve(chosen.precision, self.device.type)
        torch.manual_seed(0)
        self.teacher = frozen(self.setting.network("teacher"))
        self.images = plant(folder / "images", chosen.steps * self.setting.batch, self.setting.source)
        self.turns = 0

    # ------------------------------------------------------------------ our loop

    def settings(self, stored: bool, **more: Any) -> dict[str, Any]:
        common = {
            "objective": "default_light",
            "views": self.setting.views,
            "batch_size": self.setting.batch,
            "epochs": 1,
        }
        common |= {
            "size": self.setting.size,
            "precision": self.precision,
            "threads": self.chosen.threads,
            "quiet": True,
        }
        return common | {"replay": int(stored)} | more

    def ours(self, stored: bool, **more: Any) -> Turn:
        """One epoch of `distill`."""
        student, self.turns = self.setting.network("student").train(), self.turns + 1
        out, full = self.folder / f"run{self.turns}", self.folder / f"full-{self.precision}"
        settings = self.settings(stored, **more)
        if stored:
            if not full.exists():
                fill_targets(self.teacher, student, str(self.images), out=str(full), **settings)
            shutil.copytree(full, out, ignore=shutil.ignore_patterns(".lock"))
        marks = Marks(student, self.device)
        distill(self.teacher, student, str(self.images), out=str(out), log_every=1, **settings)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        shutil.rmtree(out)
        return replace(marks.turn(self.chosen.leave_out), waited=lines[-1]["wait_share"])

    # ------------------------------------------------------------------ bare networks

    def bare(self, ask_teacher: bool) -> Turn:
        """Student's forward, backward and step on tensors that lie ready; the teacher's forward before it, if asked."""
        size, batch = self.setting.size, self.setting.batch
        student = self.setting.network("student").train()
        head = torch.nn.Linear(student.dim, self.teacher.dim)
        both = torch.nn.ModuleList([student, head]).to(self.device, memory_format=torch.channels_last)
        teacher = self.teacher.to(self.device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(both.parameters(), lr=1e-3)
        pixels = torch.rand(batch, 3, size, size, device=self.device).to(memory_format=torch.channels_last)
        target = torch.randn(batch, self.teacher.dim, device=self.device)
        marks = Marks(student, self.device)
        for _ in range(self.chosen.steps):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision != "32-true"):
                if ask_teacher:
                    with torch.no_grad():
                        target = teacher(pixels).embedding.float()
                teacher_outputs = head(student(pixels).embedding)
            loss = 2 - 2 * F.cosine_similarity(teacher_outputs.float(), target).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return marks.turn(self.chosen.leave_out)

    # ------------------------------------------------------------------ the script that everyone writes

    def usual(self) -> Turn:
        """fp32, NCHW, PIL and torchvision in a DataLoader with two workers, the teacher asked at every step."""
        from torchvision.transforms import v2

        student = self.setting.network("student").train()
        head = torch.nn.Linear(student.dim, self.teacher.dim)
        teacher = self.teacher.to(self.device, memory_format=torch.contiguous_format)
        both = torch.nn.ModuleList([student, head]).to(self.device)
        optimizer = torch.optim.AdamW(both.parameters(), lr=1e-3)
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
        steps = [v2.RandomResizedCrop(self.setting.size), v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2)]
        files = Files(
            sorted(self.images.iterdir()), v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, True)])
        )
        workers = torch.utils.data.DataLoader(files, self.setting.batch, shuffle=True, num_workers=2, drop_last=True)
        marks, used = Marks(student, self.device), list[float]()
        for batch in workers:
            pixels = batch.to(self.device)
            with torch.no_grad():
                target = teacher(pixels).embedding
            teacher_outputs = head(student(pixels).embedding)
            loss = 2 - 2 * F.cosine_similarity(teacher_outputs, target).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            used.append(cpu_of_children())
        turn, counted = marks.turn(self.chosen.leave_out), used[self.chosen.leave_out :]
        return replace(turn, cpu=turn.cpu + (counted[-1] - counted[0]) / (len(counted) - 1))

    # ------------------------------------------------------------------ lightly-train

    def lightly(self, precision: str) -> Turn:
        """lightly-train's distillation v1: the same networks, batch, size and images."""
        file = self.folder / "teacher.safetensors"
        if not file.exists():
            save_student(self.teacher, file)
        arch, args = self.setting.student
        told = lightly_train.distil(
            self.chosen.python, file, self.images, self.chosen.steps, self.folder / "theirs.safetensors", arch, args,
            self.setting.batch, self.setting.size, method="distillationv1", precision=precision,
            accelerator=self.device.type, threads=torch.get_num_threads(),
        )  # fmt: skip
        return Turn(self.setting.batch / told["images_per_second_steady"], told["cpu_seconds_per_step"])


class Files(torch.utils.data.Dataset):
    """JPEG files through a transform, as most scripts read them."""

    def __init__(self, files: list[Path], transform: Callable):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[i]).convert("RGB"))


def ways(bench: Bench) -> dict[str, Callable[[], Turn]]:
    """What runs in turn for a setting. The order is that of the table."""
    stored, online = {"stored": lambda: bench.ours(True)}, {"online": lambda: bench.ours(False)}
    if bench.name == "usual":
        return stored | {"usual loop": bench.usual}
    if bench.name == "lightly":
        same = {"objective": "lightly_v1"}
        theirs = {"lightly-train": lambda: bench.lightly(bench.precision)}
        if bench.precision != "32-true":
            theirs["its default"] = lambda: bench.lightly("32-true")
        return {
            "stored": lambda: bench.ours(True, **same, mix="none"),
            "online": lambda: bench.ours(False, **same),
        } | theirs
    bare = {"student alone": lambda: bench.bare(False), "teacher + student": lambda: bench.bare(True)}
    return stored | online | bare


def pairs(found: dict[str, list[Turn]]) -> Iterator[tuple[str, float, float]]:
    """(name, ratio by the wall, ratio by the processor) for the pairs that have a goal: how many times faster."""
    if "its default" not in found and "lightly-train" in found:
        found = found | {"its default": found["lightly-train"]}  # the probe chose fp32: they are one
    for name in GOALS:
        ours, theirs = name.split(" / ")
        if ours in found and theirs in found:
            both = list(zip(found[ours], found[theirs], strict=True))
            yield name, *(statistics.median(getattr(b, by) / getattr(a, by) for a, b in both) for by in ("wall", "cpu"))


def measure(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Run all ways of a setting in turn, print its table, return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, Path(folder), chosen)
        runs, setting = ways(bench), bench.setting
        found: dict[str, list[Turn]] = {way: [] for way in runs}
        for _ in range(chosen.turns):
            for way, run in runs.items():
                found[way].append(run())
    networks = f"{setting.teacher[0]} -> {setting.student[0]}"
    print(f"\n{name}: {networks}, {setting.size} px, batch {setting.batch}, {bench.precision} on {bench.device.type}")
    for way, turns in found.items():
        wall, cpu = (statistics.median(getattr(turn, by) for turn in turns) for by in ("wall", "cpu"))
        waits = [turn.waited for turn in turns if turn.waited is not None]
        waited = f", waits for images {100 * statistics.median(waits):.1f} % of the time" if waits else ""
        print(
            f"  {way:<26} {setting.batch / wall:7.1f} images/s  {1000 * cpu / setting.batch:7.2f} ms of processor an image{waited}"
        )
    ratios = {}
    for pair, wall, cpu in pairs(found):
        print(f"  {pair:<26} {wall:5.2f}x by the wall  {cpu:5.2f}x by the processor  (goal {GOALS[pair]})")
        ratios[pair] = {"wall": wall, "cpu": cpu, "goal": GOALS[pair]}
    return {"ratios": ratios, "turns": {way: [vars(turn) for turn in turns] for way, turns in found.items()}}


def can_run(name: str, chosen: argparse.Namespace) -> bool:
    """Without being asked by name: the ResNet-50 at 224 px takes too long on CPUs, lightly-train has to be there."""
    return torch.cuda.is_available() if name == "loop-224-r50" else name != "lightly" or bool(chosen.python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), help="default: all that can run")
    parser.add_argument("--steps", type=int, default=12, help="of each way and turn")
    parser.add_argument(
        "--leave-out", type=int, default=3, help="steps at the beginning of a turn that are not counted"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, help="default: the setting's")
    parser.add_argument("--precision", default="auto", choices=["auto", "32-true", "bf16-mixed"])
    parser.add_argument("--threads", type=int, default=2, help="decoding threads of our loop")
    parser.add_argument("--python", help="an interpreter with lightly-train and timm")
    parser.add_argument("--out", help="JSON file for the figures")
    chosen = parser.parse_args()
    if chosen.steps - chosen.leave_out < 2:
        parser.error(f"--steps: expected at least 2 more than --leave-out {chosen.leave_out}, got {chosen.steps}")
    names = chosen.only or [name for name in SETTINGS if can_run(name, chosen)]
    if "lightly" in names and not chosen.python:
        parser.error("--only lightly needs --python")
    results = {name: measure(name, chosen) for name in names}
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
