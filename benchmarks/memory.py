"""What does an image cost before it is read, and does a run's memory grow? Goals: 1.28 M images in 30 s at 200 bytes each.

    make bench-memory                                   or  python -m benchmarks.memory [--images 200000] [--out memory.json]
    python -m benchmarks.memory --images 1281167        the full ImageNet-1k index (1.3 M empty files: minutes to make)

Index: one source each of a folder (1,000 folders of empty files), a zip and tar shards (10,000 pictures of 110 kB in each with
their .cls, the pictures being holes: headers lie where they would) is opened in a process of its own. Seconds are of a warm disk
cache; "held" is what the process keeps afterwards, "peak" what it needed meanwhile, both in bytes an image over the
process before. Seconds for 1.28 M are in proportion.
"of core" is the process's own time, which other work on the machine disturbs less.

Run: `distill` of a tiny student on 32 px JPEGs in shards, each run in a process of its own. "anonymous" is the peak of
memory that cannot be dropped (RssAnon), "resident" the peak that counts mapped files too, such as stored targets.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks.peak import ANONYMOUS, Peak, now

IMAGENET = 1_281_167
FOLDERS, SHARD, BYTES = 1000, 10_000, 110_000
SECONDS_GOAL, BYTES_GOAL, GROWTH_GOAL = 30.0, 200.0, 1.05


def name_of(i: int, count: int) -> str:
    folder = i * FOLDERS // count
    return f"n{1440764 + folder * 137:08d}/n{1440764 + folder * 137:08d}_{i}.JPEG"


def plant_folder(place: Path, count: int) -> Path:
    for i in range(count):
        path = place / name_of(i, count)
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    return place


def plant_zip(place: Path, count: int) -> Path:
    place.mkdir()
    with zipfile.ZipFile(place / "set.zip", "w") as out:
        for i in range(count):
            out.writestr(zipfile.ZipInfo(name_of(i, count)), b"")
    return place / "set.zip"


def plant_tar(place: Path, count: int) -> Path:
    place.mkdir()
    for first in range(0, count, SHARD):
        with open(place / f"train-{first // SHARD:06d}.tar", "wb") as out:
            for i in range(first, min(first + SHARD, count)):
                label = tarfile.TarInfo(f"{i:09d}.cls")
                label.size = 3
                image = tarfile.TarInfo(f"{i:09d}.jpg")
                image.size = BYTES
                out.write(label.tobuf(tarfile.USTAR_FORMAT) + bytes(512) + image.tobuf(tarfile.USTAR_FORMAT))
                out.seek(-(-BYTES // 512) * 512, os.SEEK_CUR)
            out.write(bytes(10_240))
    return place


PLANTS = {"folder": plant_folder, "zip": plant_zip, "tar": plant_tar}


def trim() -> None:
    """Give back what was freed: what is left is held."""
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def opened(source: str) -> dict[str, float]:
    """Open a source in this process and say what it cost."""
    import ssl_kd.data.sources.zip  # noqa: F401  # imported before the first look at memory
    from ssl_kd.data.open import open_images

    trim()
    before = now()
    began, worked = time.perf_counter(), time.process_time()
    images = open_images(source)
    images.ids[len(images) - 1]
    seconds, core = time.perf_counter() - began, time.process_time() - worked
    for i in range(0, len(images), SHARD // 2):  # every shard's entries come to memory as they do in an epoch
        images.ids[i]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trim()
    count = len(images)
    return {
        "images": count,
        "seconds": seconds,
        "core seconds": core,
        "held": (now() - before) / count,
        "peak": (peak - before) / count,
        "for 1.28 M": seconds * IMAGENET / count,
    }


def plant_pictures(place: Path, count: int) -> None:
    """Write 32 px JPEGs into shards of 1,000."""
    import numpy as np
    from PIL import Image

    place.mkdir()
    rng = np.random.default_rng(0)
    for first in range(0, count, 1000):
        with tarfile.open(place / f"{first // 1000:06d}.tar", "w") as out:
            for i in range(first, min(first + 1000, count)):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "JPEG")
                info = tarfile.TarInfo(f"{i:06d}.jpg")
                info.size = file.tell()
                file.seek(0)
                out.addfile(info, file)


def distilled(source: str, epochs: int, replay: int) -> dict[str, float]:
    """Distil on `source` in this process and say how much memory that took at most."""
    import torch

    from ssl_kd import distill
    from ssl_kd.models.encoder import build
    from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = Preprocessing(size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    teacher = build("resnet18", preprocessing=small, channels=[8, 16, 32, 64])
    with tempfile.TemporaryDirectory() as out, Peak(ANONYMOUS, every=0.05) as peak:
        done = distill(
            teacher,
            "resnet18",
            source,
            out=f"{out}/run",
            epochs=epochs,
            replay=replay,
            student_args={"channels": [4, 8, 16, 32]},
            objective="simreg",
            size=32,
            batch_size=128,
            precision="32-true",
            accelerator="cpu",
            quiet=True,
        )
    return {
        "anonymous": peak.top / 1e6,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "images_per_second": done.images_per_second,
    }


def elsewhere(cache: Path, *job: object) -> dict[str, float]:
    """Run one of the two measurements in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--job", json.dumps([str(part) for part in job])]
    env = os.environ | {"SSL_KD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"memory: {' '.join(command)} failed:\n{answer.stderr}")
    return json.loads(answer.stdout.splitlines()[-1])


def indices(root: Path, count: int) -> dict[str, dict[str, float]]:
    """Plant, open and remove each kind of source."""
    print(f"\nIndex of {count:,} images: goals {SECONDS_GOAL:.0f} s for 1.28 M, {BYTES_GOAL:.0f} bytes an image")
    print(f"  {'source':<22}{'seconds':>9}{'of core':>9}{'for 1.28 M':>12}{'held B':>9}{'peak B':>9}")
    rows = {}
    for kind, plant in PLANTS.items():
        source = plant(root / kind, count)
        for turn in ("", " again") if kind == "tar" else ("",):
            row = rows[kind + turn] = elsewhere(root / "cache", "open", source)
            good = row["for 1.28 M"] < SECONDS_GOAL and row["held"] < BYTES_GOAL
            figures = f"{row['seconds']:9.2f}{row['core seconds']:9.2f}{row['for 1.28 M']:12.1f}{row['held']:9.0f}{row['peak']:9.0f}"
            print(f"  {kind + turn:<22}{figures}  {'holds' if good else 'FAILS'}", flush=True)
        shutil.rmtree(root / kind)
    return rows


def runs(root: Path, counts: list[int], epochs: list[int]) -> dict[str, dict[str, float]]:
    """Distil over few and many images, few and many epochs."""
    print("\nMemory of a run, MB; the share is of the first row with the same replay")
    print(f"  {'images':>8}{'epochs':>8}{'replay':>8}{'anonymous':>12}{'resident':>10}{'share':>8}{'images/s':>10}")
    rows = {}
    for count in counts:
        plant_pictures(root / str(count), count)
    for replay in (0, 1):
        first = 0.0
        for count in counts:
            for passes in epochs:
                row = rows[f"{count} {passes} {replay}"] = elsewhere(
                    root / "cache", "distil", root / str(count), passes, replay
                )
                first = first or row["anonymous"]
                share = row["anonymous"] / first
                figures = f"{row['anonymous']:12.1f}{row['resident']:10.1f}{share:8.3f}{row['images_per_second']:10.0f}"
                verdict = "holds" if share < GROWTH_GOAL else "GROWS"
                print(f"  {count:>8}{passes:>8}{replay:>8}{figures}  {verdict}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, help="of the index; 1281167 is ImageNet-1k")
    parser.add_argument("--run-images", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--only", choices=["index", "run"])
    parser.add_argument("--folder", help="where to plant (default: the system's place for temporary files)")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        what, source, *numbers = json.loads(chosen.job)
        print(json.dumps(opened(source) if what == "open" else distilled(source, *map(int, numbers))))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as root:
        results = {}
        if chosen.only != "run":
            results["index"] = indices(Path(root), chosen.images)
        if chosen.only != "index":
            results["run"] = runs(Path(root), chosen.run_images, chosen.epochs)
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
