"""Kill an index anywhere: SIGKILL at random moments while it is added to, replaced and removed; nothing is lost or doubled.

    python -m benchmarks.index_kill [--kills 200] [--seed 0]

A child process changes an index by made-up vectors, each a function of its picture's name and version. Into a log it
writes each step before it commits it, and "done" behind that. It is killed at a moment drawn by seed. Then the index must
open, every byte must fit its check sum, every name must stand once with the vector of its version, and the whole must be
what the log's steps make, with or without the one that was under way. The next child goes on. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ssl_kd.search.store import Store, create, name_hash

WIDTH = 64
BATCH = 500
DONE = "done"
LONGEST = 0.25  # seconds until a kill


def vector(name: str, version: int) -> np.ndarray:
    """The row that a picture of that name has in that version."""
    return np.random.default_rng((name_hash(name), version)).normal(size=WIDTH).astype(np.float32)


def work(folder: Path, log: Path, seed: int) -> None:
    """Change the index without end: add new pictures, make some anew, remove some; each step is one commit."""
    rng = random.Random(seed)
    store = Store(folder)
    while True:
        with store.writing() as writer:
            live = store.live().tolist()
            step = rng.choice(("add", "add", "replace", "remove"))
            names = [store.name(row) for row in rng.sample(live, min(len(live), BATCH // 4))]
            rows = store.rows_of(names).tolist()
            if step == "add":
                names = [f"photos/{rng.getrandbits(64):x}.jpg" for _ in range(rng.randint(1, BATCH))]
            version = 0 if step == "add" else rng.randint(1, 1 << 30)
            if step != "add":
                writer.remove(rows)
            if step != "remove" and names:
                writer.add(names, np.stack([vector(name, version) for name in names]), "photos", str(version))
            note(log, json.dumps({"step": step, "version": version, "names": names}))
            writer.commit()
        note(log, DONE)


def note(log: Path, line: str) -> None:
    with open(log, "a") as file:
        file.write(line + "\n")


def possible(log: Path, before: dict[str, int]) -> list[dict[str, int]]:
    """What the index may hold by the log: the version of each picture, without and with a step that was under way."""
    whole = log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []
    state = before
    for number, line in enumerate(whole):
        if line == DONE:
            continue
        step = json.loads(line)
        after = {name: version for name, version in state.items() if name not in step["names"]}
        if step["step"] != "remove":
            after |= dict.fromkeys(step["names"], step["version"])
        if whole[number + 1 :] == []:
            return [state, after]
        state = after
    return [state]


def content(store: Store) -> dict[str, int]:
    """The version of each picture in the index. SystemExit for a name that stands twice or a vector that is not its own."""
    found: dict[str, int] = {}
    for row in store.live().tolist():
        name, version = store.name(row), int(store.root(row)[1])
        if name in found or not np.array_equal(store.vectors[row], vector(name, version)):
            raise SystemExit(f"{name} (row {row}) is there twice, or with another's vector")
        found[name] = version
    return found


def one_kill(folder: Path, log: Path, seed: int, rng: random.Random) -> None:
    log.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 1
        try:
            work(folder, log, seed)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    time.sleep(rng.uniform(0, LONGEST))
    died = os.waitpid(child, os.WNOHANG)[0]
    if died:
        raise SystemExit("the child ended by itself")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill so often and look after each; returns pictures and rows at the end."""
    rng = random.Random(seed)
    create(folder / "i", WIDTH, {})
    known: dict[str, int] = {}
    for number in range(kills):
        one_kill(folder / "i", folder / "log", rng.getrandbits(30), rng)
        store = Store(folder / "i")
        store.check()
        now = content(store)
        if now not in possible(folder / "log", known):
            raise SystemExit(f"after kill {number + 1} the index is not what was committed")
        known = now
    with store.writing():
        pass
    return len(store), store.head.rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pictures, rows = run(Path(folder), options.kills, options.seed)
    seconds = time.monotonic() - began
    print(f"{options.kills} kills in {seconds:.0f} s, nothing lost or doubled: {pictures:,} pictures in {rows:,} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
