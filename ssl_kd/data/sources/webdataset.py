"""Tar shards in the layout of webdataset -> numbered pictures, from disk, http(s) or a store, without unpacking.

Members are grouped by key (the name up to the first dot after the last slash); of a group the picture is taken, and
.cls, .json, .txt are passed over: labels never come in. One pass over the headers says where each picture lies. It is
kept as one small file a shard (an `Entries`) in the cache folder, so it is done once, resumes where it was killed, and
only a changed shard is read again.

On disk the pictures are then read at random, like a folder's. What lies at a URL, or is spelled `stream:PATTERN`, is
read shard by shard: a window of shards is shuffled together (`ssl_kd.data.samplers`), remote ones are fetched ahead into a
bounded folder of whole files. Either way an epoch is a function of (seed, epoch), so that views, replayed targets, several
processes and going on at the very sample work as for a folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
import zipfile
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from ssl_kd.data.prefetch import prefetch
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.decode import EXTENSIONS, MAX_BYTES, THIS_TIME, UnreadableError, decode, not_this_time
from ssl_kd.data.sources.fingerprint import files_content, read_bytes, stamp
from ssl_kd.data.sources.listing import (
    NAMED_IN_ERRORS,
    Names,
    PackedNames,
    count_ending,
    is_hidden_path,
    is_picture_path,
    no_images,
)
from ssl_kd.data.sources.shard_cache import LOADERS, Fetched
from ssl_kd.data.sources.tar_index import BLOCK, Member, TarError, is_header, members
from ssl_kd.errors import ImagesError, shown_name
from ssl_kd.runtime.cache import cache_folder
from ssl_kd.runtime.download import alone, digest_of
from ssl_kd.runtime.progress import Progress
from ssl_kd.runtime.stores import in_store, listed

VERSION = 2  # raise it when a change of code changes which pictures a shard holds
HELD = 1 << 25  # pictures whose entries are in memory at once, some 45 bytes each; above it, read shard by shard
TOLD = 32  # so many shards to index are worth a line of progress
MOST_SHARDS = 1_000_000
REASONS = {
    "link": -1,
    "device": -2,
    "pipe": -3,
    "sparse": -4,
    "large": -5,
}  # stands in for the size of what is unreadable
STREAM = "stream:"
BESIDE = "(beside the picture of its sample)"  # masks and other pictures of one key; counted like an ending


class Entries:
    """Where the pictures of one shard lie: names, first bytes, sizes (int32; below 0 a reason of REASONS)."""

    def __init__(self, names: PackedNames, offsets: np.ndarray, sizes: np.ndarray):
        self.names, self.offsets, self.sizes = names, offsets, sizes
        self.passed_over: Counter[str] = Counter()  # members that are no pictures of ours, by ending; kept in the notes

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def digest(self) -> str:
        """SHA-256 of names and sizes."""
        parts = (self.names.block, self.names.ends.astype("<i8").tobytes(), self.sizes.astype("<i4").tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def save(self, path: Path, **notes: str) -> None:
        """Write to `path`, whole or not at all."""
        stated = {"count": len(self), "digest": self.digest, "passed_over": self.passed_over}
        part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            with open(part, "wb") as file:
                np.savez(
                    file,
                    notes=np.frombuffer(json.dumps(stated | notes).encode(), np.uint8),
                    block=np.frombuffer(self.names.block, np.uint8),
                    ends=self.names.ends,
                    offsets=self.offsets,
                    sizes=self.sizes,
                )
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Entries:
        """Read back what `save` wrote; numpy checks each array's CRC."""
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return cls(PackedNames.of(file["block"].tobytes(), file["ends"]), file["offsets"], file["sizes"])


class Notes(TypedDict):
    """What is noted of a shard beside its entries; sha256: of one that lies at a URL."""

    count: int
    digest: str
    passed_over: dict[str, int]
    sha256: NotRequired[str]


def notes_of(path: Path) -> Notes | None:
    """Return what was noted beside the entries (count, digest, passed_over, sha256 of a remote shard), or None.

    None: there is no such file, or it is damaged.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return cast(Notes, dict(json.loads(file["notes"].tobytes())))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: it is made anew
        return None


def entries_of(path: str) -> Entries:
    """Read the headers of the tar at `path`. Raises ImagesError, with the name and the byte, for a broken archive."""
    offsets, sizes, passed_over = array("q"), array("i"), Counter[str]()
    try:
        with open(path, "rb", buffering=0) as file:
            found = pictures(members(file.fileno(), os.fstat(file.fileno()).st_size), passed_over)
            names = PackedNames(_each_its_own(_noted(member, offsets, sizes) for member in found))
    except TarError as error:
        raise ImagesError(f"{shown_name(path)}: {error}. Mend the shard, or leave it out of the list") from None
    except OSError as error:
        raise ImagesError(f"{shown_name(path)}: cannot be read: {error.strerror or error}") from None
    entries = Entries(names, np.array(offsets, np.int64), np.array(sizes, np.int32))
    entries.passed_over = passed_over
    return entries


def _noted(member: Member, offsets: array[int], sizes: array[int]) -> str:
    """Append where a picture lies and return its name: one pass, and no list of a million members."""
    size = REASONS.get(member.kind, member.size)
    offsets.append(member.data)
    sizes.append(size if size <= MAX_BYTES else REASONS["large"])
    return _text(member.name)


def _each_its_own(names: Iterable[str]) -> Iterator[str]:
    """Names as they are; the second member of one name (`tar -r`, two folders packed flat) is called NAME#2."""
    seen: set[int] = set()  # hashes: 30 bytes a name less than the names; equal ones of two names cost a "#2"
    times: Counter[str] = Counter()
    for name in names:
        if hash(name) in seen:
            times[name] += 1
            yield f"{name}#{times[name] + 1}"
        else:
            seen.add(hash(name))
            yield name


def pictures(found: Iterable[Member], passed_over: Counter[str] | None = None) -> Iterator[Member]:
    """Yield the picture of each run of members with one key: `a.jpg` and not its mask `a.png` or `a.seg.png`.

    Only where no member is just key and extension are all of them taken, so that `IMG.01.jpg`, `IMG.02.jpg` are two.
    Members of one name are pictures each. passed_over: counts the others by ending.
    """
    counted: Counter[str] = Counter() if passed_over is None else passed_over
    seen = (m for m in found if m.kind != "folder" and _is_taken(m.name, counted))
    for key, group in itertools.groupby(seen, lambda m: _key(m.name)):
        run = list(group)
        plain = [m for m in run if b"." not in m.name[len(key) + 1 :]]
        taken = [m for m in plain if m.name == plain[0].name] or run
        yield from taken
        if len(run) > len(taken):
            counted[BESIDE] += len(run) - len(taken)


def _is_taken(name: bytes, counted: Counter[str]) -> bool:
    path = _text(name)
    if is_picture_path(path):
        return True
    if not is_hidden_path(path):
        count_ending(path, counted)
    return False


def _key(name: bytes) -> bytes:
    folder, slash, file = name.rpartition(b"/")
    return folder + slash + file.partition(b".")[0]


def _text(name: bytes) -> str:
    return name.removeprefix(b"./").decode("utf-8", "surrogateescape")


def expand(pattern: str) -> list[str]:
    """Return the shards that a pattern names: `{000..146}`, `{a,b}`, several of them, and `::` between patterns."""
    found: list[str] = []
    for part in pattern.split("::"):
        pieces = re.split(r"(\{[^{}]*\})", part)
        choices = [_choices(p) if p.startswith("{") else [p] for p in pieces]
        count = int(np.prod([len(c) for c in choices], dtype=object))
        if count > MOST_SHARDS:
            raise ImagesError(f"{shown_name(part)}: names {count:,} shards, more than {MOST_SHARDS:,}")
        found += ["".join(choice) for choice in itertools.product(*choices)]
    return found


def _choices(braces: str) -> list[str]:
    if span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", braces):
        first, last = span.groups()
        if int(last) < int(first) or int(last) - int(first) >= MOST_SHARDS:
            raise ImagesError(f"{braces}: expected numbers that rise, at most {MOST_SHARDS:,} of them")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        return [str(i).zfill(width) for i in range(int(first), int(last) + 1)]
    return braces[1:-1].split(",")


def is_remote(shard: str) -> bool:
    """Whether a shard is fetched: by http or https, or from a store (`ssl_kd.runtime.stores`)."""
    return shard.lower().startswith(("http://", "https://")) or in_store(shard)


class ShardIds(Names):
    """`shard.tar/name in it` for each picture, read from the entries when asked for."""

    def __init__(self, images: ShardImages):
        self._images = images

    def __len__(self) -> int:
        return int(self._images.ends[-1])

    def name(self, i: int) -> str:
        """See Names."""
        shard, row = self._images.locate(i)
        return f"{_basename(self._images.shards[shard])}/{self._images.entries(shard).names[row]}"


class ShardImages(ImageSource):
    """The pictures of tar shards, in the order of the list and within each shard.

    streamed: read shard by shard, some of them shuffled together, rather than at random. True for what is remote
    and for more than HELD pictures.
    """

    def __init__(self, shards: Sequence[str], max_unreadable: float = 0.01, name: str = "", streamed: bool = False):
        if not shards:
            raise ImagesError(f"{shown_name(name)}: names no shard")
        self.shards = list(shards)
        self.name = name or (self.shards[0] if len(shards) == 1 else f"{self.shards[0]} and {len(shards) - 1} more")
        self.remote = any(map(is_remote, shards))
        self._home = cache_folder() / "shards" / _short("\n".join(map(_place, shards)))
        self._fetched = Fetched(
            self._home, {i: shard for i, shard in enumerate(self.shards) if is_remote(shard)}, len(shards)
        )
        self._held: OrderedDict[int, Entries] = OrderedDict()
        self._rows = 0  # pictures of the held shards
        self._holding = threading.Lock()
        notes = self._index()
        self.ends = np.cumsum([int(note["count"]) for note in notes], dtype=np.int64)
        self._digests = [str(note["digest"]) for note in notes]
        self._fetched.learn(notes)
        if not self.ends[-1]:
            raise ImagesError(no_images(self.name, self._some_members()))
        self.streamed = streamed or self.remote or int(self.ends[-1]) > HELD
        passed_over: Counter[str] = Counter()
        for note in notes:
            passed_over.update(note["passed_over"])
        super().__init__(self.name, ShardIds(self), max_unreadable, passed_over)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._holding = threading.Lock()

    def runs(self) -> np.ndarray | None:
        """Pictures of each shard where they are streamed."""
        return np.diff(self.ends, prepend=0) if self.streamed else None

    def coming(self, runs: np.ndarray) -> None:
        """Fetch the shards of a URL ahead, in this order."""
        self._fetched.plan(runs)

    def locate(self, i: int) -> tuple[int, int]:
        """Return the shard and the row in it of picture i."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        return shard, i - (int(self.ends[shard - 1]) if shard else 0)

    def entries(self, shard: int) -> Entries:
        """Return where the pictures of a shard lie, from memory or from the cache folder."""
        with self._holding:
            if shard in self._held:
                self._held.move_to_end(shard)
                return self._held[shard]
            try:
                self._held[shard] = Entries.load(self._files[shard])
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise ImagesError(
                    f"{shown_name(str(self._files[shard]))}: was damaged or removed ({error}); start again"
                ) from None
            self._rows += len(self._held[shard])
            while self._rows > HELD and len(self._held) > 1:
                self._rows -= len(self._held.popitem(last=False)[1])
            return self._held[shard]

    def _some_members(self) -> list[str]:
        """Names of a few members of the first shard, where none is a picture."""
        path = self._path(0)
        with open(path, "rb", buffering=0) as file:
            found = members(file.fileno(), os.fstat(file.fileno()).st_size)
            return [_text(m.name) for m in itertools.islice(found, NAMED_IN_ERRORS) if m.kind != "folder"]

    def _path(self, shard: int) -> str:
        """The file of a shard, fetched if it lies at a URL."""
        return str(self._fetched.path(shard)) if is_remote(self.shards[shard]) else self.shards[shard]

    def _index(self) -> list[Notes]:
        """Return the notes of every shard, reading the headers of those that have none yet."""
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            self._files = [self._home.with_name("index") / f"{_short(_stamp(shard))}.npz" for shard in self.shards]
            self._files[0].parent.mkdir(exist_ok=True)
            notes = [notes_of(file) for file in self._files]
            if all(notes):
                return [note for note in notes if note]
            with alone(self._home):  # of several processes one reads, the others wait and find it done
                notes = [notes_of(file) for file in self._files]
                self._fetched.learn(notes)
                missing = [i for i, note in enumerate(notes) if not note]
                with Progress("index shards", len(missing), "shards", quiet=len(missing) < TOLD) as bar:
                    # Headers that are in memory already are read fastest by one thread; the others would only take turns.
                    for _ in prefetch(self._index_one, missing, threads=LOADERS if self.remote else 0, depth=LOADERS):
                        bar.advance(1)
            return [note for file in self._files if (note := notes_of(file))]
        except OSError as error:
            raise ImagesError(
                f"{self._home}: the index of shards cannot be kept here ({error.strerror or error}); set SSL_KD_CACHE"
            ) from None

    def _index_one(self, shard: int) -> None:
        """Read one shard's headers into the cache folder; a remote one is fetched for it, and kept if there is room."""
        if not is_remote(self.shards[shard]):
            entries_of(self.shards[shard]).save(self._files[shard])
            return
        path = self._fetched.fetch(shard)
        try:
            sha256 = digest_of(path)
            entries_of(str(path)).save(self._files[shard], sha256=sha256)
            self._fetched.known[shard] = sha256
        except ImagesError as error:
            path.unlink(missing_ok=True)  # fetched anew next time: it may have been mended
            reason = str(error).removeprefix(f"{shown_name(str(path))}: ")
            raise ImagesError(f"{shown_name(self.shards[shard])}: {reason}") from None
        self._fetched.make_room(set())

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        shard, row = self.locate(i)
        entries = self.entries(shard)
        offset, size = int(entries.offsets[row]), int(entries.sizes[row])
        if size < 0:
            reason = next(kind for kind, code in REASONS.items() if code == size)
            raise UnreadableError(
                f"larger than {MAX_BYTES >> 20} MiB"
                if reason == "large"
                else f"a {reason} member; only ordinary files are read"
            )
        data = self._bytes(shard, offset - BLOCK, BLOCK + size)
        if len(data) < BLOCK + size or not is_header(data[:BLOCK]):
            raise UnreadableError(f"no member at byte {offset - BLOCK} any more: the shard was changed or cut short")
        return decode(data[BLOCK:], shorter)

    def _bytes(self, shard: int, offset: int, length: int) -> bytes:
        while True:
            path = self._path(shard)
            try:
                return read_bytes(path, offset, length)
            except FileNotFoundError:
                if not is_remote(self.shards[shard]):
                    raise UnreadableError(f"{THIS_TIME}the shard is gone") from None
            except OSError as error:  # a fetched one may have been put away by another process: it is fetched again
                raise not_this_time(error) from None

    def _identity(self) -> Iterator[bytes]:
        for shard, digest in zip(self.shards, self._digests, strict=True):
            yield f"{_basename(shard)}\n{digest}\n".encode("utf-8", "surrogateescape")

    def _content(self, full: bool) -> Iterator[bytes]:
        """Of shards on disk what `files_content` says; of those at a URL the SHA-256 that every fetch is held to."""
        for i, shard in enumerate(self.shards):
            if is_remote(shard):
                yield self._fetched.known[i].encode()
        yield from files_content([shard for shard in self.shards if not is_remote(shard)], full)


def open_shards(source: str | Sequence[str], max_unreadable: float) -> ShardImages:
    """Open shards by a pattern (with `stream:` before it to read them shard by shard) or from a list of patterns."""
    patterns = [source] if isinstance(source, str) else list(source)
    streamed = patterns[0].startswith(STREAM)
    patterns = [os.path.expanduser(p.removeprefix(STREAM)) for p in patterns]
    shards = [shard for pattern in patterns for shard in _under(pattern)]
    twice = [shard for shard, times in Counter(shards).items() if times > 1]
    if twice:
        raise ImagesError(f"{shown_name(twice[0])}: named twice among the shards")
    gone = [shard for shard in shards if not is_remote(shard) and not os.path.isfile(shard)]
    if gone:
        raise ImagesError(f"{shown_name(gone[0])}: no such shard ({len(gone)} of {len(shards)} are missing)")
    name = patterns[0] if len(patterns) == 1 else f"{patterns[0]} and {len(patterns) - 1} more"
    return ShardImages(shards, max_unreadable, name, streamed)


def _under(pattern: str) -> list[str]:
    """The shards of a pattern, or of a folder in the order of their names."""
    if in_store(pattern) and not pattern.endswith((".tar", ".tar}")):
        return _stored_under(pattern.rstrip("/"))
    return tars_in(pattern) if os.path.isdir(pattern) else expand(pattern)


def _stored_under(folder: str) -> list[str]:
    """The .tar objects of a store's folder."""
    names = listed(folder)
    if found := [f"{folder}/{name}" for name in names if name.endswith(".tar") and not name.startswith(".")]:
        return found
    seen = ", ".join(map(shown_name, names[:NAMED_IN_ERRORS])) or "no objects"
    raise ImagesError(
        f"{shown_name(folder)}: expected tar shards, but it holds {seen}; pack pictures into .tar files of some 100 MB"
    )


def tars_in(folder: str) -> list[str]:
    """Return the .tar files that lie in a folder, in the order of their names, as paths."""
    with os.scandir(folder) as found:
        names = sorted(e.name for e in found if e.name.endswith(".tar") and not e.name.startswith(".") and e.is_file())
    return [f"{folder.rstrip('/')}/{name}" for name in names]


def names_shards(path: str) -> bool:
    """Whether a source is spelled as shards: .tar, a pattern of them, a URL, or anything behind `stream:`."""
    return path.startswith((STREAM, "http://", "https://")) or in_store(path) or path.endswith((".tar", ".tar}"))


def _basename(shard: str) -> str:
    return unquote(urlsplit(shard).path).rpartition("/")[2] if is_remote(shard) else os.path.basename(shard)


def _place(shard: str) -> str:
    return shard if is_remote(shard) else os.path.realpath(shard)


def _stamp(shard: str) -> str:
    """What names this very file, and which pictures are read of it: a URL, or the path with its `stamp`."""
    rules = f"{VERSION} {' '.join(EXTENSIONS)}"
    return f"{rules} {shard}" if is_remote(shard) else f"{rules} {_place(shard)} {stamp(shard)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
