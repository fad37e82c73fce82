"""An index of pictures that knows whose vectors it holds.

    index = Index.build("photos.index", "photos/", "runs/x/student.safetensors")
    index = Index.open("photos.index")
    for hit in index.search("query.jpg", k=5)[0].hits:
        print(hit.name, hit.distance)

Names are paths: the source as it was given, and the picture's path in it. Distances are exact. A query by another
encoder than the index's own is refused, since its numbers would mean something else, unless that encoder was made to
answer in the very coordinates of the index (a drop-in, see `ssl_kd.models.space`).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

import numpy as np

from ssl_kd.errors import NonFinite, UserError, one_of, shown_name
from ssl_kd.errors import nearest as nearest_name
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space import Space
from ssl_kd.runtime.progress import Progress
from ssl_kd.runtime.signals import Interrupted, stop_signals
from ssl_kd.runtime.stores import in_store
from ssl_kd.search.embedding import vectors
from ssl_kd.search.fast import Fast
from ssl_kd.search.filling import (
    Filler,
    PathNames,
    archive_in,
    holds_some_of,
    loaded,
    must_differ,
    opened,
    opened_queries,
)
from ssl_kd.search.remote import Remote
from ssl_kd.search.store import Added, Store, create, is_index
from ssl_kd.search.vectors import distances, in_order, nearest, unit_rows

if TYPE_CHECKING:
    from ssl_kd.data.sources.base import ImageSource
    from ssl_kd.models.encoder import Encoder

MOST_COMPARED = 10_000  # names that one which is not there is compared with, letter by letter
MANY_QUERIES = 5  # of which the same answer to all says something of the encoder
MOST_NAMED = 3  # sources that a line names
NORMS = ("unit", "none")  # cosine distance of unit vectors, or Euclidean distance of the features as they are


@dataclass(frozen=True)
class Hit:
    """One picture that was found, and the number of its row."""

    name: str
    distance: float
    row: int = -1


@dataclass(frozen=True)
class Found:
    """What was found for one query, nearest first."""

    query: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Change:
    """What an addition did: pictures added, replaced, there already, and those that could not be read, with reasons."""

    added: int
    replaced: int
    there: int
    unreadable: dict[str, str]


class OfEmbedding(TypedDict, total=False):
    """How pictures are read and embedded; see `Index.add`."""

    batch_size: int
    threads: int
    device: str


class OfAdding(OfEmbedding, total=False):
    """What else `Index.add` is told."""

    replace: bool
    quiet: bool
    max_unreadable: float


def same_answers(found: Sequence[Found], held: int) -> bool:
    """Whether enough queries got the very same pictures, in any order, and these are at most half of those held."""
    answers = {frozenset(hit.row for hit in one.hits) for one in found}
    return len(found) >= MANY_QUERIES and len(answers) == 1 and 0 < len(next(iter(answers))) <= held / 2


class Index:
    """Vectors of pictures on disk, with their names and the fingerprint of the encoder that made them."""

    def __init__(self, store: Store, encoder: Encoder | None = None, remote: Remote | None = None):
        self.store, self._encoder, self._remote = store, encoder, remote
        self.place = remote.url if remote else str(store.folder)
        about = store.head.about
        try:
            self.space = Space.from_record(about.get("space"))
            self.pixels = Preprocessing.from_key(self.space.pixels)
            self.norm, self.weights = one_of("norm", str(about.get("norm")), NORMS), str(about.get("weights", ""))
            self.reading = cast(Mapping[str, object], about.get("reading", {}))
            if self.space.width != store.head.width:
                raise ValueError("its width is not that of its vectors")
        except ValueError as error:
            raise UserError(f"{self.place}: the index is damaged: {error}; build it anew") from None
        self.feature = ""  # of the encoder of queries, where it was asked for by name
        self._fast: Fast | None = None

    # ------------------------------------------------------------------------------------------ making and opening

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Encoder,
        norm: str = "unit",
        weights: str = "",
        reading: Mapping[str, object] | None = None,
    ) -> Index:
        """A new, empty index of an encoder's own feature, in a folder or in a store (s3://, gs://, hf://).

        UserError where something lies there already.
        weights: where the encoder can be loaded from again, for searches that name none; reading: what `load_teacher` is
        to be told beside it.
        """
        one_of("norm", norm, NORMS)
        if encoder.led:
            raise UserError(
                f"encoder: its feature {encoder.feature} is a head into the space of {encoder.space.arch}, which is for queries; "
                "an index there is made by that network, or one by another feature"
            )
        about: dict[str, object] = {"space": encoder.space.record(), "norm": norm, "weights": weights}
        about |= {"reading": dict(reading)} if reading else {}
        here, remote = _here(folder)
        return cls(create(here, encoder.dim, about), encoder, remote)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        images: object,
        encoder: Encoder | str | os.PathLike[str],
        feature: str = "",
        norm: str = "unit",
        factory: str = "",
        **settings: Unpack[OfAdding],
    ) -> Index:
        """Index all pictures of a source; the same call resumes where an earlier one was stopped.

        settings: those of `add`. factory: see `train`. UserError where an index of another encoder or of other pictures is
        there.
        """
        source = opened(images, settings.pop("max_unreadable", 0.01))
        index = cls.create_or_open(folder, encoder, feature, norm, factory)
        index.must_hold_some_of(source)
        index.add(source, **settings)
        if factory:
            index.train(factory)
        return index

    @classmethod
    def create_or_open(
        cls,
        folder: str | Path,
        encoder: Encoder | str | os.PathLike[str],
        feature: str = "",
        norm: str = "unit",
        factory: str = "",
        reading: Mapping[str, object] | None = None,
    ) -> Index:
        """The index that `build` fills: a new one, or that of the same encoder and norm which is there.

        reading: what `load_teacher` is told beside the file's name, such as arch. Looks whether faiss takes the factory
        string before anything is made.
        """
        weights = ""
        if factory:
            Fast.check(factory)
        if isinstance(encoder, str | os.PathLike):
            weights = os.path.abspath(encoder) if os.path.exists(encoder) else os.fspath(encoder)
        encoder = loaded(encoder, feature, reading)
        here, remote = _here(folder)
        if not is_index(here):
            return cls.create(folder, encoder, norm, weights, reading)
        index = cls(Store(here), encoder, remote)
        why = index.space.difference(encoder.space)
        why = f"vectors of {index.space}, and this encoder has {why}" if why else ""
        if index.norm != norm:
            why = f"norm {index.norm}, and {norm} is asked for"
        if why:
            raise UserError(
                f"out: {index.place} is there already, an index of {why}; choose another folder, or add pictures to that index "
                "as it is with ssl-kd index add"
            )
        return index

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        feature: str = "",
        reading: Mapping[str, object] | None = None,
    ) -> Index:
        """An index as it is now. encoder: what makes vectors of queries; None: the weights that the index names.

        feature: of that encoder; empty: its own, or that of its head into the index's space.
        reading: what `load_teacher` is told beside a file's name, such as arch.
        """
        here, remote = _here(folder)
        if remote and not is_index(here):
            raise UserError(f"{remote.url}: no index there; make one with ssl-kd index build")
        store = Store(here)
        index = cls(store, None if encoder is None else loaded(encoder, feature, reading), remote)
        index.feature = feature
        return index

    @property
    def encoder(self) -> Encoder:
        """The encoder of queries, loaded when it is first asked for."""
        if self._encoder is None:
            if not self.weights:
                raise UserError(f"{self.place}: does not say where its encoder is; name its weights ({self.space})")
            try:
                self._encoder = loaded(self.weights, self.feature or self.space.feature, self.reading)
            except UserError as error:
                raise UserError(f"{error} (the index names these weights; give others with --weights)") from None
        return self._encoder

    def __len__(self) -> int:
        return len(self.store)

    def must_hold_some_of(self, source: ImageSource) -> None:
        """UserError where the index holds pictures, and none of this source: `build` resumes, `add` adds others."""
        held = self._live_additions()
        if not held or holds_some_of(source, {(one.source, one.root) for one in held}, self.store):
            return
        names = list(dict.fromkeys(one.source or self.store.name(one.first) for one in held))
        shown = ", ".join(map(shown_name, names[:MOST_NAMED])) + (", ..." if len(names) > MOST_NAMED else "")
        raise UserError(
            f"out: {self.place} holds pictures of {shown}, and none of {shown_name(source.name)}; choose another folder, or add "
            f"these pictures to it with ssl-kd index add --index {self.place} --images {shown_name(source.name)}"
        )

    # ------------------------------------------------------------------------------------------------- changing

    def add(
        self,
        images: object,
        replace: bool = False,
        batch_size: int = 64,
        threads: int = 2,
        device: str = "cpu",
        quiet: bool = True,
        max_unreadable: float = 0.01,
    ) -> Change:
        """Add the pictures of a source; those whose names are there already stay, or with `replace` are made anew.

        Work done is brought to the disk every ten seconds, so the same call resumes where a killed one was.
        UserError for another encoder than the index's own, two pictures of one name, and a full disk (nothing is lost).
        """
        self._must_own(self.encoder)
        source = opened(images, max_unreadable)
        with self.store.writing() as writer:
            names = PathNames(source)
            must_differ(names)
            old = self.store.rows_of(names)
            wanted = np.arange(len(names)) if replace else np.flatnonzero(old < 0)
            filler = Filler(writer, source, old, self.norm)
            with Progress("index", len(wanted), "images", quiet) as bar, stop_signals() as stop:
                for job, numbers, rows in vectors(self.encoder, source, wanted, batch_size, threads, device):
                    filler.take([names[i] for i in numbers], rows, numbers)
                    bar.advance(len(job))
                    if stop:
                        filler.flush()
                        raise Interrupted(
                            f"stopped by {stop[0]}: {filler.added:,} pictures were added", "the same command resumes"
                        )
                filler.flush()
        self._changed()
        there = int((old >= 0).sum())
        replaced = filler.replaced if replace else 0
        return Change(filler.added - replaced, replaced, 0 if replace else there, dict(source.unreadable))

    def remove(self, names: Sequence[str] | str) -> int:
        """Take pictures out by their names; a name that ends in / takes all below it. Returns how many went.

        UserError, and nothing removed, for a name that is not there.
        """
        names = [names] if isinstance(names, str) else names
        with self.store.writing() as writer:
            plain = [name for name in names if not name.endswith("/")]
            rows = self.store.rows_of(plain)
            if missing := [name for name, row in zip(plain, rows, strict=True) if row < 0]:
                raise self._not_there(missing[0])
            gone = set(rows.tolist())
            for folder in (name for name in names if name.endswith("/")):
                below = {row for row in self.store.live().tolist() if self.store.name(row).startswith(folder)}
                if not below:
                    raise self._not_there(folder)
                gone |= below
            writer.remove(gone)
            writer.commit()
        self._changed()
        return len(gone)

    def missing(self) -> list[str]:
        """Names of those pictures whose files are not on the disk any more; shards in a folder are files of many."""
        rows = ((row, *self.store.root(row)) for row in self.store.live().tolist())
        places = (
            (self.store.name(row), self.picture_place(row)) for row, _, root in rows if root and os.path.isdir(root)
        )
        return [name for name, place in places if not (os.path.exists(place) or archive_in(place))]

    def absent_sources(self) -> list[str]:
        """Folders and zips that its pictures came from and that are not on this disk: whether a picture of theirs is gone is not known."""
        roots = dict.fromkeys(one.root for one in self._live_additions())
        there = (root for root in roots if root and "://" not in root)
        return [root for root in there if not (os.path.exists(root) or archive_in(root))]

    def _live_additions(self) -> list[Added]:
        """The additions of which pictures are left, oldest first."""
        additions = self.store.additions
        used = np.unique(np.searchsorted([one.first for one in additions], self.store.live(), side="right") - 1)
        return [additions[at] for at in used.tolist()]

    def train(self, factory: str) -> dict[str, float]:
        """Put an approximate index of faiss beside the vectors: {"10": share of the exact 10 nearest that it finds}.

        factory: faiss' string ("IVF1024,Flat nprobe=16", "HNSW32"); "" or "Flat" takes it away again. Pictures that are
        added later are searched exactly beside it, until it is trained anew.
        """
        with self.store.writing() as writer:
            if factory in ("", "Flat"):
                writer.commit(fast={})
                found: dict[str, float] = {}
            else:
                self.store.check()
                record = Fast.train(self.store, factory, self.norm == "unit")
                writer.commit(fast=record)
                found = record["recall"]  # type: ignore[assignment]
        self._changed()
        return found

    def _changed(self) -> None:
        """Forget what was learnt of the old vectors, and put the new ones into the store that they came from."""
        self._fast = None
        if self._remote:
            self._remote.push()

    def _not_there(self, name: str) -> UserError:
        """The error for a name that is not there, with those that may be meant."""
        names = [self.store.name(row) for row in self.store.live().tolist()]
        if name.endswith("/"):
            names = sorted({one[: cut.end()] for one in names for cut in re.finditer("/", one)})
        ends = [one for one in names if one.endswith(f"/{name.lstrip('./')}")][:3]
        hint = f" Did you mean {' or '.join(ends)}?" if ends else nearest_name(name, names[:MOST_COMPARED])
        return UserError(f"{self.place}: holds no {shown_name(name)}; nothing was removed.{shown_name(hint)}")

    # ------------------------------------------------------------------------------------------------- asking

    def search(
        self, images: object, k: int = 10, within: float | None = None, **settings: Unpack[OfEmbedding]
    ) -> list[Found]:
        """The k nearest pictures of each query, fewer where the index holds fewer.

        images: a picture's path, a PIL image, a list of either, or any source of pictures. within: no farther than this.
        settings: batch_size, threads, device. UserError for an encoder of another space, an empty index, a query that
        is no picture.
        """
        if k < 1 or not len(self):
            raise UserError(
                f"k: expected at least 1, got {k}" if k < 1 else f"{self.place}: the index holds no pictures"
            )
        asking, source = self.asking(self.encoder), opened_queries(images)
        found: list[Found] = []
        names = PathNames(source)
        for _, numbers, rows in vectors(asking, source, np.arange(len(source)), **settings):
            near, where = self.nearest(rows, k)
            found += [
                Found(*one) for one in zip((names[i] for i in numbers), self._hits(near, where, within), strict=True)
            ]
        return found

    def nearest(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances (Q, K) and row numbers (Q, K) for query features (Q, D): K is k or as many as the index holds.

        The vectors are compared with their check sums before they are first used: UserError where one has changed.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UserError(f"k: expected a whole number of at least 1, got {k!r}")
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self.space.width:
            raise UserError(f"queries: expected rows of {self.space.width} numbers, got shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise NonFinite("queries: some numbers are not finite; look at the encoder or the picture")
        cosine = self.norm == "unit"
        queries = unit_rows(rows) if cosine else np.ascontiguousarray(rows, np.float32)
        k = min(k, len(self))
        self.store.check()
        if not self.store.head.fast:
            return nearest(self.store.vectors, queries, k, cosine, self.store.gone)
        if self._fast is None:
            self._fast = self._opened_fast()
        where = self._fast.candidates(queries, k, self.store.gone)
        near = distances(self.store.vectors, queries, where, cosine)
        later, rows_later = nearest(self.store.vectors, queries, k, cosine, self.store.gone, self._fast.rows)
        near, where = in_order(np.concatenate([near, later], 1), np.concatenate([where, rows_later], 1))
        return near[:, :k], where[:, :k]

    def _opened_fast(self) -> Fast:
        """A second try, since another process may have trained it anew and swept the old file."""
        try:
            return Fast.open(self.store)
        except UserError:
            before = self.store.head
            self.store.reload()
            if self.store.head == before or not self.store.head.fast:
                raise
            return Fast.open(self.store)

    def _hits(self, near: np.ndarray, rows: np.ndarray, within: float | None) -> Iterator[tuple[Hit, ...]]:
        most = np.inf if within is None else within
        for distances_, numbers in zip(near.tolist(), rows.tolist(), strict=True):
            pairs = zip(distances_, numbers, strict=True)
            yield tuple(Hit(self.store.name(row), far, row) for far, row in pairs if row >= 0 and far <= most)

    def picture_place(self, row: int) -> str:
        """Where the picture of a row lay when it was added, as a whole path."""
        name, (source, root) = self.store.name(row), self.store.root(row)
        return f"{root}{name[len(source) :]}" if root else name

    def _must_own(self, encoder: Encoder) -> None:
        why = self.space.difference(encoder.space)
        if encoder.led and self.space.holds(encoder.space):
            why = f"a head into that space ({encoder.arch}), which is for queries"
        if why:
            raise UserError(
                f"{self.place}: holds vectors of {self.space}, and this encoder has {why}; pictures are added by "
                "the index's own encoder"
            )

    def asking(self, encoder: Encoder) -> Encoder:
        """The encoder as it answers in the index's space: itself, or read through its head into that space.

        UserError for an encoder of another space, and for a feature of another that was asked for by name.
        """
        why = self.space.difference(encoder.space)
        if not why or (encoder.led and self.space.holds(encoder.space)):
            return encoder
        leading = [name for name in encoder.heads if (head := encoder.head(name)) and self.space.holds(head.space)]
        if leading and not self.feature:
            return copy.copy(encoder).read_as(leading[0])  # the given one keeps its own feature
        mend = "query by the index's own encoder or by a student of it made with `--objective drop_in`, or build an index of this one"
        if leading:
            mend = f"leave the feature out, or ask for {leading[0]!r}, its head into that space"
        elif len(encoder.heads):
            why += f" (nor has it a head into that space: {', '.join(encoder.heads)})"
        raise UserError(
            f"{self.place}: holds vectors of {self.space}, and this encoder has {why}: distances between the two would mean "
            f"nothing; {mend}"
        )

    def remark(self) -> str:
        """What to know of queries by the encoder: that its head learned at another input size. Empty: nothing."""
        asking = self.asking(self.encoder)
        learned, here = Preprocessing.from_key(asking.heard).size, self.pixels.size
        if not asking.led or learned == here:
            return ""
        return (
            f"the student learned the teacher at {learned} px, and the index was made at {here} px; one that is built with "
            f"--size {learned} is the space that it learned"
        )

    def verify(self) -> None:
        """Compare every byte of the index with its check sums. UserError where one has changed."""
        self.store.check()
        if self.store.head.fast:
            self._opened_fast()

    def info(self) -> dict[str, object]:
        """What the index is, in plain values."""
        head = self.store.head
        return {
            "index": self.place,
            "pictures": len(self),
            "removed": len(self.store.gone),
            "width": head.width,
            "norm": self.norm,
            "encoder": self.space.record(),
            "weights": self.weights,
            "reading": dict(self.reading),
            "bytes": sum(head.bytes.values()),
            "approximate": head.fast,
        }


def _here(folder: str | os.PathLike[str]) -> tuple[Path, Remote | None]:
    """Where an index is read and changed: its folder, or the copy of one in a store, brought up to date."""
    if not in_store(folder):
        return Path(folder), None
    remote = Remote(os.fspath(folder))
    return remote.pull(), remote
