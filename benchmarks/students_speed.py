"""What do several students cost that share each pass of the teacher? `python -m benchmarks students_speed`.

    python -m benchmarks.students_speed [--size 224] [--batch 32] [--steps 12] [--turns 3] [--precision auto] [--out FILE]

A ViT-S teacher and three students (ResNet-18, MobileNetV3-small, ViT-Ti) on synthetic photographs, `default_light`:

- together: one `distill` with all students.
- one by one: a `distill` for each; their times added up.
- networks alone: the teacher's forward, and each student's forward, backward and step, on tensors that lie ready.

Ways run in turn; a figure is the median over turns. The two ratios: one by one / together (how much is won), and networks
alone / together (1 would be the speed of one teacher plus the students; goal: 0.9). Weights are random: speed does not
depend on them. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.distill_speed import Marks, plant
from ssl_kd.distillation.trainer import distill
from ssl_kd.models.encoder import Encoder, build, frozen
from ssl_kd.runtime.devices import resolve

TEACHER = "vit_small_patch16_224"
STUDENTS = {"resnet": "resnet18", "mobile": "mobilenetv3_small_100", "vit": "vit_tiny_patch16_224"}
GOAL = 0.9


class Bench:
    """All ways of one measurement."""

    def __init__(self, folder: Path, chosen: argparse.Namespace):
        self.folder, self.chosen = folder, chosen
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = resolve(chosen.precision, self.device.type)
        self.images = plant(folder / "photos", chosen.batch * chosen.steps, (400, 300))
        self.teacher, self.runs = self.network(TEACHER), 0

    def network(self, arch: str) -> Encoder:
        args = {"img_size": self.chosen.size} if arch.startswith("vit") else {}
        torch.manual_seed(0)
        encoder = build(arch, **args)
        encoder.preprocessing = encoder.preprocessing.at(self.chosen.size)
        return encoder

    def distilled(self, students: dict[str, Encoder]) -> float:
        """Seconds per step of a run, from one look of the first student to the next."""
        self.runs += 1
        marks = Marks(next(iter(students.values())), self.device)
        distill(
            self.teacher,
            images=self.images,
            out=self.folder / f"run{self.runs}",
            students=students,
            objective="default_light",
            size=self.chosen.size,
            epochs=1,
            batch_size=self.chosen.batch,
            precision=self.precision,
            threads=self.chosen.threads,
            health_every=0,
            quiet=True,
        )
        return marks.turn(self.chosen.leave_out).wall

    def together(self) -> float:
        return self.distilled({name: self.network(arch) for name, arch in STUDENTS.items()})

    def one_by_one(self) -> float:
        return sum(self.distilled({name: self.network(arch)}) for name, arch in STUDENTS.items())

    def alone(self) -> float:
        """Seconds per step of the bare networks."""
        teacher = frozen(self.teacher).to(self.device)
        students = [self.network(arch).to(self.device).train() for arch in STUDENTS.values()]
        optimizers = [torch.optim.AdamW(student.parameters(), 1e-3, fused=True) for student in students]
        pixels = torch.rand(self.chosen.batch, 3, self.chosen.size, self.chosen.size, device=self.device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        times = []
        for _ in range(self.chosen.steps):
            began = self._now()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision != "32-true"):
                with torch.no_grad():
                    teacher(pixels)
                losses = [student(pixels).embedding.float().square().mean() for student in students]
            for loss, optimizer in zip(losses, optimizers, strict=True):
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            times.append(self._now() - began)
        return statistics.median(times[self.chosen.leave_out :])

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="of each way and turn")
    parser.add_argument("--leave-out", type=int, default=3, help="first steps of a turn that are not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="decoding threads")
    parser.add_argument("--precision", default="auto", choices=["auto", "32-true", "bf16-mixed"])
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), chosen)
        ways: dict[str, Callable[[], float]] = {
            "together": bench.together,
            "one by one": bench.one_by_one,
            "networks alone": bench.alone,
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(chosen.turns):
            for way, run in ways.items():
                found[way].append(run())
    seconds = {way: statistics.median(turns) for way, turns in found.items()}
    print(f"{TEACHER} -> {', '.join(STUDENTS.values())}; {chosen.size} px, batch {chosen.batch}, {bench.precision}")
    for way, value in seconds.items():
        print(f"  {way:<16} {value * 1000:9.1f} ms a step  {chosen.batch / value:8.1f} images/s")
    won, near = (seconds[way] / seconds["together"] for way in ("one by one", "networks alone"))
    print(f"  one by one / together      {won:5.2f}\n  networks alone / together  {near:5.2f}  (goal {GOAL})")
    if chosen.out:
        chosen.out.write_text(json.dumps({"seconds": found, "one_by_one": won, "networks_alone": near}, indent=1))


if __name__ == "__main__":
    main()
