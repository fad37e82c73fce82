"""Int8 and float files of students in onnxruntime and OpenVINO, one image and a batch, in turns; prints ratios and the machine.

    python -m benchmarks int8_speed                            # three families at 224 px, in every engine that is installed
    python -m benchmarks int8_speed --size 96 --batches 1      # a quick look

Goal: at least 1.8 times as fast as the float ONNX file on a processor with VNNI, at a quarter of the size. OpenVINO's files are
divided by the same ONNX file, so that its ratios say what to deploy. Weights are random, which is enough for speed: nothing is
said here about quality (`ssl-kd export --to onnx-int8` and `ssl-kd certify` are for that).
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ssl_kd
from ssl_kd.checkpoints.programs import start_openvino
from ssl_kd.exporters.int8 import program
from ssl_kd.exporters.pictures import pictures
from ssl_kd.models.encoder import frozen
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.runtime.timing import in_turns, machine

STUDENTS = ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224")
GOAL = 1.8
FORMATS = {"onnx": ("onnx", "onnx-int8"), "openvino": ("openvino", "openvino-int8")}
NEEDS = {"onnx": ("onnxruntime",), "openvino": ("openvino", "nncf")}
FLOAT = "onnx"  # what every file is compared with


def files(arch: str, size: int, folder: Path, formats: list[str]) -> dict[str, Path]:
    """A student with random weights in each format; int8 with every node int8."""
    torch.manual_seed(0)
    args = {"img_size": size} if arch.startswith("vit") else {}
    encoder = frozen(ssl_kd.build(arch, preprocessing=Preprocessing().at(size), **args))
    photos, ends = pictures(60, size), {"onnx": ".onnx", "openvino": ".xml"}
    paths = {name: folder / f"{arch}.{name}{ends[name.partition('-')[0]]}" for name in formats}
    for name, path in paths.items():
        int8: dict[str, Any] = {"images": photos, "keep": 0} if "int8" in name else {}
        ssl_kd.export(encoder, name, path, **int8)
    return paths


def asked(path: Path) -> Callable[[torch.Tensor], object]:
    """The file as its engine runs it, on so many threads as torch has."""
    if path.suffix == ".onnx":
        return program(path.read_bytes())
    ask = start_openvino(path).ask
    return lambda images: ask(images.numpy())


def weight(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engines = [name for name, needs in NEEDS.items() if all(importlib.util.find_spec(one) for one in needs)]
    print(f"{machine()}; {options.threads} threads; {options.size} px; engines: {', '.join(engines)}")
    formats = [FLOAT, *(name for engine in engines for name in FORMATS[engine] if name != FLOAT)]
    with tempfile.TemporaryDirectory(prefix="ssl_kd.bench.") as folder:
        for arch in options.students:
            paths = files(arch, options.size, Path(folder), formats)
            programs = {name: asked(path) for name, path in paths.items()}
            for batch in options.batches:
                images = pictures(batch, options.size)
                spent = in_turns({name: (lambda ask=ask, x=images: ask(x)) for name, ask in programs.items()})
                print(f"{arch}, batch {batch}: {FLOAT} {spent[FLOAT]}")
                for name in formats[1:]:
                    ratio = spent[FLOAT].median / spent[name].median
                    verdict = ("; goal met" if ratio >= GOAL else f"; goal {GOAL} missed") if "int8" in name else ""
                    size = 100 * weight(paths[name]) / weight(paths[FLOAT])
                    print(
                        f"  {name} {spent[name]}: {ratio:.2f} times as fast, {size:.0f} % of the size{verdict}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
