"""Int8 and float files of students in onnxruntime, one image and a batch, taken in turns; prints ratios and the machine.

    python -m benchmarks int8_speed                            # three families at 224 px
    python -m benchmarks int8_speed --size 96 --batches 1      # a quick look

Goal: at least 1.8 times as fast as float on a processor with VNNI, at a quarter of the size. Weights are random, which is
enough for speed: nothing is said here about quality (`ssl-kd export --to onnx-int8` and `ssl-kd certify` are for that).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import ssl_kd
from ssl_kd.exporters.int8 import program
from ssl_kd.exporters.pictures import pictures
from ssl_kd.models.encoder import frozen
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.runtime.timing import in_turns, machine

STUDENTS = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224")
GOAL = 1.8


def files(arch: str, size: int, folder: Path) -> dict[str, Path]:
    """The float and the int8 file of a student with random weights, every node int8."""
    torch.manual_seed(0)
    args = {"img_size": size} if arch.startswith("vit") else {}
    encoder = frozen(ssl_kd.build(arch, preprocessing=Preprocessing().at(size), **args))
    paths = {"float": folder / f"{arch}.onnx", "int8": folder / f"{arch}.int8.onnx"}
    ssl_kd.export(encoder, "onnx", paths["float"])
    ssl_kd.export(encoder, "onnx-int8", paths["int8"], pictures(60, size), keep=0)
    return paths


def calls(paths: dict[str, Path], images: torch.Tensor) -> dict[str, Callable[[], object]]:
    asked = {name: program(path.read_bytes()) for name, path in paths.items()}
    return {name: (lambda ask=ask: ask(images)) for name, ask in asked.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}; {options.threads} threads; {options.size} px")
    with tempfile.TemporaryDirectory(prefix="ssl_kd.bench.") as folder:
        for arch in options.students:
            paths = files(arch, options.size, Path(folder))
            share = paths["int8"].stat().st_size / paths["float"].stat().st_size
            for batch in options.batches:
                spent = in_turns(calls(paths, pictures(batch, options.size)))
                ratio = spent["float"].median / spent["int8"].median
                verdict = "goal met" if ratio >= GOAL else f"goal {GOAL} missed"
                print(
                    f"{arch}, batch {batch}: float {spent['float']}, int8 {spent['int8']}: {ratio:.2f} times as fast "
                    f"({verdict}); {100 * share:.0f} % of the size",
                    flush=True,
                )


if __name__ == "__main__":
    main()
