"""A cache of features on disk: extract once, evaluate as often as you like.

    store = FeatureStore("runs/features")
    bank = store.bank(encoder, images, labels)            # a second call reads the file
    banks = store.banks(encoder, images, labels, features=("cls", "pool"))   # several features, one pass

A bank lies in a folder named by everything that decides it: weights, feature, preprocessing, precision, engine, storage
type and images. A change of any of them is another folder, so nothing stale is ever read. Rows are appended to a
memory-mapped file; `state.json` says how many are good, and an interrupted extraction goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ssl_kd.errors import NonFinite, UserError
from ssl_kd.runtime.files import atomically, probe, reserve
from ssl_kd.runtime.progress import Progress

from ..banks import FeatureBank
from .extract import bank_key, embed

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

SAVE_EVERY = 10.0  # seconds between notes of progress: what an interruption may cost
VERSION = 1


@dataclass(frozen=True)
class FeatureStore:
    """Banks under `folder`, stored as `dtype` (float32, or float16 at half the size).

    Several processes may share a folder: whoever comes second to a bank waits and then reads it.
    """

    folder: str | Path
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16"):
            raise UserError(f"feature store: dtype is float32 or float16, got {self.dtype!r}")

    def bank(self, encoder: Encoder, images: Any, labels: np.ndarray | None = None, **settings: Any) -> FeatureBank:
        """Return the bank of the encoder's own feature; settings as those of `banks`."""
        return self.banks(encoder, images, labels, (encoder.feature,), **settings)[encoder.feature]

    def banks(
        self,
        encoder: Encoder,
        images: Any,
        labels: np.ndarray | None = None,
        features: Sequence[str] = (),
        precision: str = "32-true",
        quiet: bool = False,
        title: str = "features",
        engine: str = "folded",
        **settings: Any,
    ) -> dict[str, FeatureBank]:
        """Return memory-mapped banks of the named features, extracting in one pass what is not there yet.

        Settings are those of `ssl_kd.eval.banks.extract` (batch_size, device, threads, engine). UserError for a module from
        Python, whose code has no digest that could keep its banks apart.
        """
        if encoder.arch.startswith("module/"):
            raise UserError(
                f"{encoder.arch}: a module from Python has no digest of its code; extract it without a store"
            )
        if labels is not None and len(labels) != len(images):
            raise UserError(f"labels: {len(labels)} for {len(images)} images; both must be equal")
        shelves = {
            name: self._shelf(encoder, images, precision, name, engine) for name in features or (encoder.feature,)
        }
        with _locked([shelf.folder for shelf in shelves.values()]):
            if open_ := {name: shelf for name, shelf in shelves.items() if not shelf.state["done"]}:
                _fill(open_, encoder, images, precision, quiet, title, {**settings, "engine": engine})
        return {name: shelf.bank(images, labels) for name, shelf in shelves.items()}

    def parity(
        self, encoder: Encoder, images: Any, precision: str = "32-true", engine: str = "folded"
    ) -> dict[str, float]:
        """Return least cosine and largest relative error to the eager float32 network, on the first images extracted."""
        return self._shelf(encoder, images, precision, encoder.feature, engine).state["parity"]

    def rate(self, encoder: Encoder, images: Any, precision: str = "32-true", engine: str = "folded") -> float:
        """Return images per second when the encoder's own bank was extracted (0 when it is not there)."""
        state = self._shelf(encoder, images, precision, encoder.feature, engine).state
        return state["images"] / state["seconds"] if state["seconds"] else 0.0

    def _shelf(self, encoder: Encoder, images: Any, precision: str, feature: str, engine: str) -> _Shelf:
        parts = f"{VERSION} {self.dtype} {bank_key(encoder, images, precision, feature, engine)}"
        key = hashlib.sha256(parts.encode()).hexdigest()[:24]
        return _Shelf(Path(self.folder) / key, key, len(images), encoder.width(feature), self.dtype)


@dataclass(frozen=True)
class _Shelf:
    """The files of one bank: features.npy (N, D), kept.npy (N,) the images' numbers, state.json."""

    folder: Path
    key: str
    rows: int
    width: int
    dtype: str

    @property
    def state(self) -> dict[str, Any]:
        """How far it is: images seen, rows written, seconds spent, done, the engine's parity. Damaged files: nothing."""
        nothing = {"images": 0, "rows": 0, "seconds": 0.0, "done": False, "parity": {}}
        try:
            state = json.loads((self.folder / "state.json").read_text())
            features, kept = self.open("r")
        except (OSError, ValueError, EOFError):
            return nothing
        fits = features.shape == (self.rows, self.width) and features.dtype == self.dtype and kept.shape == (self.rows,)
        return {**nothing, **state} if fits else nothing

    def open(self, mode: Literal["r", "r+", "w+"]) -> tuple[np.memmap, np.memmap]:
        new, paths = mode == "w+", (self.folder / "features.npy", self.folder / "kept.npy")
        features = np.lib.format.open_memmap(
            paths[0], mode, np.dtype(self.dtype), (self.rows, self.width) if new else None
        )
        kept = np.lib.format.open_memmap(paths[1], mode, np.dtype("int64"), (self.rows,) if new else None)
        if new:
            self._take_room(paths)
        return features, kept

    def _take_room(self, paths: Sequence[Path]) -> None:
        """A disk that fills up later would kill the writer of a mapped file with holes; leave none and say so now."""
        try:
            for path in paths:
                with path.open("r+b") as file:
                    reserve(file, path.stat().st_size)
        except OSError as error:
            for path in paths:
                path.unlink(missing_ok=True)
            raise UserError(
                f"features: {self.rows:,} rows of {self.width} numbers cannot be kept in {self.folder} "
                f"({error.strerror or error}); free some space or choose another folder"
            ) from error

    def note(self, **state: Any) -> None:
        atomically(self.folder / "state.json", lambda file: file.write(json.dumps(state).encode()))

    def bank(self, images: Any, labels: np.ndarray | None) -> FeatureBank:
        rows = self.state["rows"]
        features, kept = self.open("r")
        numbers = np.asarray(kept[:rows])
        if not rows:
            raise UserError(f"{images.name}: none of {len(images)} images could be read")
        ids = [str(images.ids[i]) for i in numbers.tolist()]
        return FeatureBank(features[:rows], None if labels is None else np.asarray(labels)[numbers], ids, self.key)


def _fill(
    shelves: dict[str, _Shelf],
    encoder: Encoder,
    images: Any,
    precision: str,
    quiet: bool,
    title: str,
    settings: dict[str, Any],
) -> None:
    """Go on from where the least of the shelves stands; rows that another one has already are written again, equal."""
    states = {name: shelf.state for name, shelf in shelves.items()}
    last = min(states, key=lambda name: states[name]["images"])
    seen, rows, before = (states[last][part] for part in ("images", "rows", "seconds"))
    files = {name: shelf.open("r+" if states[name]["images"] else "w+") for name, shelf in shelves.items()}
    began = spoke = time.monotonic()
    parity: dict[str, float] = dict(states[last]["parity"])

    def note(done: bool) -> None:
        for name, shelf in shelves.items():
            for file in files[name]:
                file.flush()
            if done or seen > states[name]["images"]:
                shelf.note(images=seen, rows=rows, seconds=before + time.monotonic() - began, done=done, parity=parity)

    try:
        with Progress(title, len(images), "images", quiet, start=seen) as bar:
            for job, numbers, found in embed(
                encoder, images, tuple(shelves), seen, precision=precision, title=title, parity=parity, **settings
            ):
                for name, (features, kept) in files.items():
                    features[rows : rows + len(numbers)] = _stored(found[name], features.dtype, name)
                    kept[rows : rows + len(numbers)] = numbers
                seen, rows = job.stop, rows + len(numbers)
                bar.advance(len(job))
                if time.monotonic() - spoke > SAVE_EVERY:
                    spoke = time.monotonic()
                    note(done=False)
    except BaseException:
        note(done=False)
        raise
    note(done=True)


def _stored(rows: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    if dtype == np.float16 and rows.size and np.abs(rows).max() > np.finfo(np.float16).max:
        raise NonFinite(
            f"{name} features up to {np.abs(rows).max():.0f} do not fit into float16; store them as float32"
        )
    return rows.astype(dtype, copy=False)


@contextmanager
def _locked(folders: Sequence[Path]) -> Iterator[None]:
    """Hold the locks of all folders, taken in one order so that two processes cannot wait for each other. UserError without a place."""
    handles = []
    try:
        for folder in sorted(folders):
            probe(folder / "lock")
            handle = (folder / "lock").open("w")
            handles.append(handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        for handle in handles:
            handle.close()
