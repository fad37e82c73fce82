"""Kill a run anywhere: SIGKILL at random moments, the same command again, and at the end the same bits as unbroken.

    python -m benchmarks.kill [--kills 24] [--seed 0] [--spawn] [--students] [--keep FOLDER]

Rounds of `ssl-kd distill` (every other one with `ssl-kd targets` before it) are killed at moments drawn by seed: at any
time, as the process starts, while a state or a student is written, while targets are stored, between epochs, behind a
line of the log. After each kill the state must be readable; each finished round must equal the unbroken run in student,
best student, targets, saved state and every logged figure but the timings. Exit code 1 if anything differs.

--students: two students that follow each other, on the same passes of the teacher.

Processes are forked from one that has done its imports; --spawn starts the interpreter anew each time (slow).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a forked child must not miss the parent's threads

EPOCHS, BATCH, IMAGES, HELD = 5, 16, 112, 32
STEPS = EPOCHS * (IMAGES - HELD) // BATCH
TIMINGS = ("images_per_s", "wait_share")
MOST_IN_A_ROUND = 9  # kills; then the round may finish
GIVE_UP = 600.0  # seconds for one process


SINGLE = {"student": "resnet18", "student_args": "{channels: [8, 8, 16, 16]}"}
SEVERAL = {
    "students": "{a: {arch: resnet18, args: {channels: [8, 8, 16, 16]}}, b: {arch: resnet18, args: {channels: [4, 4, 8, 8]}}}",
    "between": "mutual",
    "objective": "default_light",
}


def settings(folder: Path, out: Path, several: bool) -> list[str]:
    given = {
        "teacher": folder / "teacher.safetensors",
        "images": folder / "images.npy",
        "out": out,
        "size": 32,
        "replay": 2,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "warmup": 1,
        "log_every": 1,
        "save_minutes": 0.001,
        "health_images": HELD,
        "precision": "32-true",
        "accelerator": "cpu",
    } | (SEVERAL if several else SINGLE)
    return [output for key, value in given.items() for output in (f"--{key}", str(value))] + ["--quiet"]


def plant(folder: Path) -> None:
    """A teacher's file and an array of images."""
    import numpy as np
    import torch

    import ssl_kd

    torch.manual_seed(1)
    contract = ssl_kd.Preprocessing().at(32, 1.0)
    ssl_kd.save_student(
        ssl_kd.build("resnet18", preprocessing=contract, channels=[8, 8, 16, 24]), folder / "teacher.safetensors"
    )
    low = np.random.default_rng(0).integers(0, 256, (IMAGES, 4, 4, 3), dtype=np.uint8)
    np.save(folder / "images.npy", low.repeat(8, 1).repeat(8, 2))


# ---------------------------------------------------------------------------------------------- processes


class Process:
    """`ssl-kd ARGV` in a process of its own, output in a file."""

    def __init__(self, argv: list[str], log: Path, spawn: bool):
        self.log = log
        with open(log, "ab") as file:
            if spawn:
                started = subprocess.Popen([sys.executable, "-m", "ssl_kd", *argv], stdout=file, stderr=file)
                self.pid = started.pid
                started.returncode = 0  # waited for below, not by subprocess
            else:
                self.pid = os.fork()
                if not self.pid:
                    _child(lambda: _main(argv), file.fileno())
        self.code: int | None = None

    def alive(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        while self.alive():
            time.sleep(0.001)

    def finish(self) -> None:
        while self.alive():
            time.sleep(0.005)
        if self.code:
            raise SystemExit(f"exit code {self.code} of a run that was left alone:\n{self.log.read_text()}")


def _main(argv: list[str]) -> int:
    from ssl_kd.cli.main import main

    return main(argv)


def _child(work: Callable[[], Any], output: int) -> None:
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = work() or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def in_a_child(work: Callable[[], None], log: Path) -> None:
    """Do it in a process of its own and wait for it."""
    pid = os.fork()
    if not pid:
        with open(log, "ab") as file:
            _child(work, file.fileno())
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(log.read_text())


# ------------------------------------------------------------------------------------------------ moments


def lines(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def last_step(out: Path) -> int:
    try:
        whole = (out / "metrics.jsonl").read_bytes().rsplit(b"\n", 2)
        return int(json.loads(whole[-2].rsplit(b"\n", 1)[-1])["step"]) if len(whole) > 1 else 0
    except (OSError, ValueError, IndexError):
        return 0


def stored(out: Path) -> int:
    """Rows of targets that are vouched for, of the part of the teacher's outputs that has fewest."""
    import numpy as np

    return min((int(np.count_nonzero(np.fromfile(path, np.uint32))) for path in out.glob("targets/*.crc")), default=0)


Moment = Callable[[], bool]


def any_time(out: Path, random: random.Random) -> Moment | None:
    """A step that is still to come, and then some milliseconds."""
    step, wait = last_step(out) + random.randint(0, STEPS // 2), random.uniform(0, 0.05)
    reached: list[float] = []

    def now() -> bool:
        if not reached and last_step(out) >= step:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() - reached[0] >= wait

    return now


def starting(out: Path, random: random.Random) -> Moment | None:
    at = time.monotonic() + random.uniform(0, 1)
    return lambda: time.monotonic() >= at


def saving(out: Path, random: random.Random) -> Moment | None:
    return writing(out, "last.ckpt", random.randrange(4))


def finishing(out: Path, random: random.Random) -> Moment | None:
    """The students and the card are written seldom; whichever comes first."""
    names = ["student_best.safetensors", "student.safetensors", "README.md"]
    return writing(out, random.choice(names), 0)


def writing(out: Path, name: str, skip: int) -> Moment:
    """While the file is written, after so many times."""
    seen = [0, False]

    def now() -> bool:
        written = any(out.rglob(f"{name}.*.part"))
        seen[0] += written and not seen[1]
        seen[1] = written
        return written and seen[0] > skip

    return now


def filling(out: Path, random: random.Random) -> Moment | None:
    """Before the store is full, which it is after two epochs."""
    before, full = stored(out), 2 * (IMAGES - HELD)
    if before >= full:
        return None
    wanted = random.randint(before + 1, full)
    return lambda: stored(out) >= wanted


def between_epochs(out: Path, random: random.Random) -> Moment | None:
    before, per_epoch = last_step(out), STEPS // EPOCHS
    return lambda: last_step(out) > before and last_step(out) % per_epoch == 0


def behind_a_line(out: Path, random: random.Random) -> Moment | None:
    before, more = lines(out), random.randrange(1, 8)
    return lambda: lines(out) == before + more


MOMENTS: dict[str, Callable[[Path, random.Random], Moment | None]] = {
    "at any time": any_time,
    "while starting": starting,
    "while a state is written": saving,
    "while a student or its card is written": finishing,
    "while targets are stored": filling,
    "between epochs": between_epochs,
    "behind a line of the log": behind_a_line,
}


def drawn_moments(out: Path, random: random.Random) -> Iterator[tuple[str, Moment]]:
    """All of them again and again, in a new order each time; a moment that cannot come any more is passed over."""
    while True:
        for name in random.sample(list(MOMENTS), len(MOMENTS)):
            if (now := MOMENTS[name](out, random)) is not None:
                yield name, now


# ------------------------------------------------------------------------------------------------- judging


def readable(out: Path) -> None:
    """What a kill left: a state that loads, and no torn line but perhaps the last."""
    from ssl_kd.runtime.run_dir import LAST
    from ssl_kd.runtime.state import load_state

    if (out / LAST).exists():
        load_state(out / LAST)
    if (out / "metrics.jsonl").exists():
        for line in (out / "metrics.jsonl").read_text().split("\n")[:-1]:
            json.loads(line)


def figures(out: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in records]


def flat(state: object, path: str = "") -> Iterator[tuple[str, object]]:
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else None
    if items is None:
        yield path, state
        return
    for key, value in items:
        yield from flat(value, f"{path}/{key}")


def differences(whole: Path, broken: Path) -> list[str]:
    """Names of what is not the same in both run folders, bit for bit."""
    import torch

    from ssl_kd.runtime.run_dir import LAST
    from ssl_kd.runtime.state import load_state

    written = [*whole.rglob("student*.safetensors"), *whole.glob("targets/*")]
    names = [str(path.relative_to(whole)) for path in written]
    found = [name for name in names if (whole / name).read_bytes() != (broken / name).read_bytes()]
    for path in whole.rglob("metrics.jsonl"):
        if figures(path.parent) != figures(broken / path.parent.relative_to(whole)):
            found.append(str(path.relative_to(whole)))
    states = [dict(flat(load_state(out / LAST))) for out in (whole, broken)]
    for key in states[0].keys() | states[1].keys():
        a, b = (state.get(key) for state in states)
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        if not same and key not in ("/seconds", "/waited"):
            found.append(f"{LAST}{key}")
    if litter := [p.name for p in broken.rglob("*.part")]:
        found.append(f"left over: {litter}")
    return found


# ------------------------------------------------------------------------------------------------ the whole


def broken_round(words: list[str], out: Path, draw: random.Random, most: int, log: Path, spawn: bool) -> Counter[str]:
    """One command, killed up to `most` times and then left to finish; returns how often at which moment."""
    killed: Counter[str] = Counter()
    moments = drawn_moments(out, draw)
    while killed.total() < most:
        moment, now = next(moments)
        process = Process(words, log, spawn)
        began = time.monotonic()
        while process.alive() and not now():
            if time.monotonic() - began > GIVE_UP:
                process.kill()
                raise SystemExit(f"no end after {GIVE_UP:.0f} s:\n{log.read_text()}")
            time.sleep(0.0005)
        if not process.alive():  # it was done before the moment came
            process.finish()
            return killed
        process.kill()
        killed[moment] += 1
        readable(out)
    Process(words, log, spawn).finish()
    return killed


def run(folder: Path, kills: int, seed: int, spawn: bool, several: bool = False) -> int:
    """The unbroken run, then broken ones until there were enough kills; 0 if all ended alike."""
    draw, log, whole = random.Random(seed), folder / "log", folder / "whole"
    in_a_child(lambda: plant(folder), log)  # a parent that had computed something could not be forked safely
    began = time.monotonic()
    Process(["distill", *settings(folder, whole, several)], log, spawn).finish()
    print(f"unbroken: {time.monotonic() - began:.1f} s, {STEPS} steps", flush=True)
    killed: Counter[str] = Counter()
    rounds = 0
    while killed.total() < kills:
        rounds += 1
        out = folder / f"broken{rounds}"
        before = killed.total()
        for command, most in (("targets", 2), ("distill", MOST_IN_A_ROUND))[rounds % 2 :]:
            killed += broken_round(
                [command, *settings(folder, out, several)],
                out,
                draw,
                min(most, kills - killed.total()),
                log,
                spawn,
            )
        if wrong := differences(whole, out):
            print(f"round {rounds}, {killed.total() - before} kills: DIFFERS in {', '.join(sorted(wrong))}")
            return 1
        print(f"round {rounds}, {killed.total() - before} kills: the same bits", flush=True)
    for moment in MOMENTS:
        print(f"  {killed[moment]:3d} {moment}")
    print(f"{killed.total()} kills in {rounds} rounds: every round ended with the bits of the unbroken run")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="at least so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--spawn", action="store_true", help="a new interpreter for each process")
    parser.add_argument("--students", action="store_true", help="two students that follow each other")
    parser.add_argument("--keep", type=Path, help="folder to leave the runs in (default: a temporary one)")
    chosen = parser.parse_args()
    if not chosen.spawn:
        for name in ("lightning_fabric", "safetensors.torch", "timm", "ssl_kd.distillation.trainer"):
            importlib.import_module(name)
    if chosen.keep:
        chosen.keep.mkdir(parents=True)
        return run(chosen.keep, chosen.kills, chosen.seed, chosen.spawn, chosen.students)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), chosen.kills, chosen.seed, chosen.spawn, chosen.students)


if __name__ == "__main__":
    raise SystemExit(main())
