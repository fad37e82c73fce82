"""A cache of features on disk: extract once, evaluate as often as you like.

    store = FeatureStore("runs/features")
    bank = store.bank(encoder, images, labels)            # a second call reads the file
    banks = store.banks(encoder, images, labels, features=("cls", "pool"))   # several features, one pass

A bank lies in a folder named by everything that decides it: weights, feature, preprocessing, precision, engine, storage
type, the images' `content_key` and the versions of the programs that read and embed them. A change of any of them is
another folder. Rows are appended to memory-mapped files (`shelf.py`), whose checksums are compared before they are
served; an interrupted extraction resumes where its last good note stands. Images that could not be read are tried again
before a bank without them is served: if one can be read by now, the bank is made anew.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np

from ssl_kd.errors import NonFinite, UserError
from ssl_kd.runtime.files import locked, probe
from ssl_kd.runtime.progress import Progress

from ..banks import FeatureBank
from .extract import any_readable, bank_key, embed
from .shelf import Shelf, State, Sums, sums
from .versions import READERS, programs

if TYPE_CHECKING:
    import torch

    from ssl_kd.data.sources.base import ImageSource
    from ssl_kd.models.encoder import Encoder

SAVE_EVERY = 10.0  # seconds between notes of progress: what an interruption may cost
VERSION = 2


class OfReading(TypedDict, total=False):
    """How images are read; see `ssl_kd.eval.banks.extract`."""

    batch_size: int
    device: str | torch.device
    threads: int


class OfABank(OfReading, total=False):
    """The same with how they are embedded."""

    precision: str
    quiet: bool
    title: str
    engine: str


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

    def bank(
        self, encoder: Encoder, images: ImageSource, labels: np.ndarray | None = None, **settings: Unpack[OfABank]
    ) -> FeatureBank:
        """Return the bank of the encoder's own feature; settings as those of `banks`."""
        return self.banks(encoder, images, labels, (encoder.feature,), **settings)[encoder.feature]

    def banks(
        self,
        encoder: Encoder,
        images: ImageSource,
        labels: np.ndarray | None = None,
        features: Sequence[str] = (),
        precision: str = "32-true",
        quiet: bool = False,
        title: str = "features",
        engine: str = "folded",
        **settings: Unpack[OfReading],
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
            states = {name: (shelf, _standing(shelf, encoder, images)) for name, shelf in shelves.items()}
            if open_ := {name: pair for name, pair in states.items() if not pair[1].done}:
                _fill(open_, encoder, images, precision, quiet, title, engine, settings)
        return {name: _served(shelf, images, labels) for name, shelf in shelves.items()}

    def parity(
        self, encoder: Encoder, images: ImageSource, precision: str = "32-true", engine: str = "folded"
    ) -> dict[str, float]:
        """Return least cosine and largest relative error to the eager float32 network, on the first images extracted."""
        return self._shelf(encoder, images, precision, encoder.feature, engine).state.parity

    def rate(self, encoder: Encoder, images: ImageSource, precision: str = "32-true", engine: str = "folded") -> float:
        """Return images per second when the encoder's own bank was extracted (0 when it is not there)."""
        state = self._shelf(encoder, images, precision, encoder.feature, engine).state
        return state.images / state.seconds if state.seconds else 0.0

    def _shelf(self, encoder: Encoder, images: ImageSource, precision: str, feature: str, engine: str) -> Shelf:
        made_by = programs(READERS, engine)
        parts = f"{VERSION} {made_by} {self.dtype} {bank_key(encoder, images, precision, feature, engine)}"
        key = hashlib.sha256(parts.encode()).hexdigest()[:24]
        return Shelf(Path(self.folder) / key, key, len(images), encoder.width(feature), self.dtype)


def _standing(shelf: Shelf, encoder: Encoder, images: ImageSource) -> State:
    """Return how far a bank is, all its rows proved; nothing where a picture that it lacks can be read by now."""
    state = shelf.checked()
    if state.images and any_readable(encoder, images, shelf.missing(state)):
        return State(shelf.key)
    return state


def _served(shelf: Shelf, images: ImageSource, labels: np.ndarray | None) -> FeatureBank:
    rows = shelf.state.rows
    if not rows:
        raise UserError(f"{images.name}: none of {len(images)} images could be read")
    features, kept = shelf.open("r")
    numbers = np.asarray(kept[:rows])
    ids = [str(images.ids[i]) for i in numbers.tolist()]
    return FeatureBank(features[:rows], None if labels is None else np.asarray(labels)[numbers], ids, shelf.key)


@dataclass
class _Writer:
    """One bank being filled: its mapped files, where it stood, and the checksums of the rows so far."""

    shelf: Shelf
    before: State
    sums: Sums = (0, 0)

    def begin(self, rows: int) -> None:
        """Open the files, made anew where there is nothing, with the sums of the first `rows`."""
        self.features, self.kept = self.shelf.open("r+" if self.before.images else "w+")
        self.sums = sums(self.features[:rows], self.kept[:rows])

    def add(self, start: int, found: np.ndarray, numbers: Sequence[int], name: str) -> None:
        """Write the rows of some images from row `start` on."""
        where = slice(start, start + len(numbers))
        self.features[where] = _stored(found, self.features.dtype, name)
        self.kept[where] = numbers
        self.sums = sums(self.features[where], self.kept[where], self.sums)

    def note(self, state: State) -> None:
        """Bring the rows to the disk, then say so, unless another pass had come further."""
        self.features.flush()
        self.kept.flush()
        if state.done or state.images > self.before.images:
            self.shelf.note(replace(state, sums=self.sums))


def _fill(
    shelves: dict[str, tuple[Shelf, State]],
    encoder: Encoder,
    images: ImageSource,
    precision: str,
    quiet: bool,
    title: str,
    engine: str,
    settings: OfReading,
) -> None:
    """Go on from where the least of the shelves stands; rows that another one has already are written again, equal."""
    writers = {name: _Writer(*pair) for name, pair in shelves.items()}
    last = min((state for _, state in shelves.values()), key=lambda state: state.images)
    seen, rows, parity = last.images, last.rows, dict(last.parity)
    for writer in writers.values():
        writer.begin(rows)
    began = spoke = time.monotonic()
    made_by = programs(READERS, engine)

    def note(done: bool) -> None:
        seconds = last.seconds + time.monotonic() - began
        for writer in writers.values():
            writer.note(State("", seen, rows, seconds, done, parity=parity, programs=made_by))

    try:
        with Progress(title, len(images), "images", quiet, start=seen) as bar:
            for job, numbers, found in embed(
                encoder,
                images,
                tuple(shelves),
                seen,
                precision=precision,
                title=title,
                engine=engine,
                parity=parity,
                **settings,
            ):
                for name, writer in writers.items():
                    writer.add(rows, found[name], numbers, name)
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
            try:
                handle = (folder / "lock").open("w")
            except OSError as error:
                raise UserError(
                    f"{folder}: could not be written ({error.strerror or error}); free some space or choose another place"
                ) from error
            handles.append(handle)
            locked(handle, wait=True)
        yield
    finally:
        for handle in handles:
            handle.close()
