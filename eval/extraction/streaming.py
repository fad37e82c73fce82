"""Pictures to a table on disk, of any number, by one process or several, and again where an earlier call was stopped.

Each process takes a run of whole batches and fills a store of its own in `OUT.work`; the first then writes the file, run
after run. Batches are those of one process, so the rows are, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.subset import Subset
from ssl_kd.errors import UserError, shown_name
from ssl_kd.runtime.ownership import MARKER, remove_ours
from ssl_kd.runtime.progress import Progress
from ssl_kd.search.store import INDEX, Store, create, is_index, name_hash

from .extract import bank_key, embed
from .tables import PART, Part, Rows, joined, kind_of, names_in

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

COMMIT_SECONDS = 10.0
COMMIT_BYTES = 64 << 20
PATIENCE = timedelta(days=7)  # for the slowest of several processes


def write_table(
    out: Path, encoder: Encoder, images: ImageSource, append: bool = False, quiet: bool = False, **settings: Any
) -> int:
    """Write embeddings of all readable pictures to `out` and return how many rows it has; settings: those of `embed`.

    append: put rows of new names behind those that are there; UserError where another encoder made these.
    """
    kind = kind_of(out)
    if kind.lines and (broken := next((name for name in map(str, images.ids) if "\n" in name or "\r" in name), "")):
        raise UserError(
            f"out: the name {shown_name(broken)} holds a line break, which {out.suffix} has no place for; write .parquet"
        )
    # the digest as well: a student that answers in its teacher's space is another encoder all the same
    maker = {"space": encoder.space.record(), "encoder": encoder.digest}
    maker |= {"precision": settings["precision"], "engine": settings["engine"]}
    old = kind.read(out) if append and out.exists() else None
    if append and out.exists() and (old is None or any(old.about.get(key) != value for key, value in maker.items())):
        raise UserError(f"out: {out} was not written by this encoder, feature, preprocessing, precision and engine")
    chosen = _new(images, old)
    about = {**maker, "key": bank_key(encoder, images, settings["precision"], engine=settings["engine"])}
    rank, world = _process()
    works = [out.with_name(f"{out.name}.work") / f"{one}-of-{world}" for one in range(world)]
    if len(chosen):
        _fill(
            works[rank],
            encoder,
            Subset(images, _share(chosen, rank, world, settings["batch_size"])),
            about,
            quiet,
            settings,
        )
    _wait_for_all(world)
    if rank:
        return 0
    # where nothing is to be added, a store is what a kill left of an addition that is in the table already
    stores = [Store(work) for work in works if is_index(work)] if len(chosen) else []
    new = [_rows_of(store, about) for store in stores if len(store)]
    tables = [*([old] if old else []), *new]
    if not tables:
        raise UserError(f"{images.name}: none of {len(images)} images could be read")
    table = joined(*tables)
    kind.write(out, Rows(table.count, table.width, about, table.parts))
    _clear(out.with_name(f"{out.name}.work"))
    return table.count


def _new(images: ImageSource, old: Rows | None) -> np.ndarray:
    """Numbers of the pictures whose names are not in the table yet."""
    if old is None:
        return np.arange(len(images))
    there = np.fromiter(map(name_hash, names_in(old)), np.uint64, old.count)
    mine = np.fromiter((name_hash(str(name)) for name in images.ids), np.uint64, len(images))
    return np.flatnonzero(~np.isin(mine, there))


def _share(numbers: np.ndarray, rank: int, world: int, batch: int) -> np.ndarray:
    batches = -(-len(numbers) // batch)
    return numbers[batches * rank // world * batch : batches * (rank + 1) // world * batch]


def _fill(
    work: Path, encoder: Encoder, images: ImageSource, about: dict[str, Any], quiet: bool, settings: dict[str, Any]
) -> None:
    """Embed what the store does not have yet. `source` of an addition says how many pictures were seen by then."""
    wanted = {**about, "pictures": len(images), "batch_size": settings["batch_size"]}
    if is_index(work) and Store(work).head.about != wanted:
        _clear(work)  # of another encoder, or of other pictures
    store = Store(work) if is_index(work) else create(work, encoder.dim, wanted)
    store.check()
    seen = max((int(one.source) for one in store.additions), default=0)
    names: list[str] = []
    rows: list[np.ndarray] = []
    since = time.monotonic()
    with store.writing() as writer, Progress("embed", len(images), "images", quiet, start=seen) as bar:
        for job, numbers, found in embed(encoder, images, (encoder.feature,), seen, title=images.name, **settings):
            names += [str(images.ids[i]) for i in numbers]
            rows.append(found[encoder.feature])
            bar.advance(len(job))
            late = time.monotonic() - since > COMMIT_SECONDS or sum(part.nbytes for part in rows) > COMMIT_BYTES
            if late or job.stop == len(images):
                writer.add(names, np.concatenate(rows), str(job.stop))
                writer.commit()
                names, rows, since = [], [], time.monotonic()


def _rows_of(store: Store, about: dict[str, Any]) -> Rows:
    def parts() -> Iterator[Part]:
        for begin in range(0, store.head.rows, PART):
            stop = min(begin + PART, store.head.rows)
            yield [store.name(row) for row in range(begin, stop)], np.asarray(store.vectors[begin:stop])

    return Rows(store.head.rows, store.head.width, about, parts)


def _clear(folder: Path) -> None:
    """Remove stores of ours, below a folder or in it, and what is empty then."""
    for store in [folder, *(path for path in folder.glob("*-of-*") if path.is_dir())]:
        if is_index(store):
            remove_ours(store, INDEX)
            (store / MARKER).unlink(missing_ok=True)
    for path in [*folder.glob("*-of-*"), folder]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _process() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _wait_for_all(world: int) -> None:
    """Return when every process has come here."""
    if world > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        dist.barrier()
        dist.destroy_process_group()
