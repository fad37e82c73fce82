"""Names -> weight files: what is published, where it is, what it scored, and a checked copy in the cache.

Environment: SSL_KD_CACHE (folder; default: the platform's cache folder), SSL_KD_MIRROR (folder or URL that is asked
before the publisher), SSL_KD_OFFLINE=1 (no network at all). A digest that nobody publishes is recorded when the file is
first seen and holds from then on (trust on first use). `ssl_kd.cli.zoo` is the command line.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from ssl_kd.checkpoints.zoo_entries import ZOO, Entry
from ssl_kd.errors import CheckpointError, nearest, one_line
from ssl_kd.runtime.cache import cache_folder
from ssl_kd.runtime.download import Check, DownloadError, MissingError, digest_of, download
from ssl_kd.runtime.files import atomic_text, sealed, unsealed
from ssl_kd.runtime.network import offline

__all__ = ["ZOO", "fetch", "find", "known", "place", "read_record"]

RECORD = "origin.json"  # beside each file: where it came from, when, and its digest
UNIQUE_FILES = {file for file, count in Counter(entry.file for entry in ZOO.values()).items() if count == 1}
FIELDS = ("name", "url", "sha256", "size", "seen", "licence")  # of a record


def fetch(name: str, quiet: bool = False) -> Path:
    """Return the path of a teacher's weight file, downloading it into the cache if it is not there yet.

    name: in `ZOO`, or one of its aliases (`facebookresearch/dino:dino_vits16`, `vit_small_patch16_224.dino`, ...).
    A file that is there is read against its digest first. Raises CheckpointError for an unknown name, a damaged file or one
    that cannot be had, DownloadError when the transfer fails.
    """
    entry = find(name)
    path = place(entry)
    if path.exists():
        try:
            _check_cached(entry, path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        return path
    addresses = _addresses(entry)
    missing = []
    for address in addresses:
        try:
            sha256 = download(address, path, _expected(entry), quiet)
        except MissingError as error:
            missing.append(str(error))
            continue
        except DownloadError as error:
            raise DownloadError(f"{error}{_first_seen(entry)}") from None
        _record(entry, path, address, sha256)
        if entry.non_commercial and not quiet:
            print(f"{entry.name}: licence {entry.licence}, see {entry.source}", file=sys.stderr)
        return path
    raise CheckpointError(_why_not(entry, path, missing))


def find(name: str) -> Entry:
    """Return the entry of a name or alias; raise CheckpointError with near names for an unknown one."""
    names, key = _names(), _plain(name)
    if key in names:
        return ZOO[names[key]]
    by_file = [entry.name for entry in ZOO.values() if entry.file == os.path.basename(name)]
    hint = f" The zoo calls that file {by_file[0]}." if by_file else nearest(key, list(names))
    raise CheckpointError(f"{name}: no teacher of that name in the zoo.{hint} `ssl-kd zoo list` shows all")


def known(name: str) -> bool:
    """Whether `name` is a teacher's name or alias."""
    return _plain(name) in _names()


def place(entry: Entry) -> Path:
    """Return where the entry's file lies in the cache, or would."""
    return cache_folder() / "weights" / entry.name / entry.file


def _plain(name: str) -> str:
    return str(name).strip().lower().replace("-", "_").removeprefix("timm/")


def _names() -> dict[str, str]:
    return {_plain(other): entry.name for entry in ZOO.values() for other in (entry.name, *entry.aliases)}


def _addresses(entry: Entry) -> list[str]:
    """Return where to look, in order: the mirror (its folder per teacher, then flat), then the publisher."""
    mirror = os.environ.get("SSL_KD_MIRROR", "").rstrip("/")
    web = urlsplit(mirror).scheme in ("http", "https")
    addresses = []
    if mirror:
        base = mirror if web or mirror.startswith("file:") else str(Path(mirror).expanduser())
        file = quote(entry.file) if "://" in base else entry.file
        addresses.append(f"{base}/{entry.name}/{file}")
        if entry.file in UNIQUE_FILES:  # two teachers' checkpoint_100.tar must not be mistaken for each other
            addresses.append(f"{base}/{file}")
    addresses += [entry.url] if entry.url else []
    return [a for a in addresses if not (offline() and urlsplit(a).scheme in ("http", "https"))]


def _expected(entry: Entry) -> Check:
    """Return what the publisher says of the file, and what was recorded when it was first seen."""
    sha256 = entry.sha256 or ""
    recorded = str((read_record(entry) or {}).get("sha256", ""))
    longest = recorded if recorded.startswith(sha256) else sha256
    return Check(entry.size, longest or None, entry.md5)


def _check_cached(entry: Entry, path: Path) -> None:
    """Raise CheckpointError when the cached file is not what was recorded; record a file that was put there by hand."""
    record = read_record(entry)
    remedy = f"remove {path} and run `ssl-kd zoo download {entry.name}`"
    if record and record["size"] != path.stat().st_size:
        raise CheckpointError(
            f"{path}: is {path.stat().st_size:,} bytes, was {record['size']:,} when it came; {remedy}"
        )
    sha256, wanted = digest_of(path), _expected(entry)
    if not sha256.startswith(wanted.sha256 or "") or not (
        wanted.md5 is None or digest_of(path, "md5").startswith(wanted.md5)
    ):
        raise CheckpointError(f"{path}: its digest is {sha256}, not the expected one; {remedy}")
    if not record:
        _record(entry, path, "put there by hand", sha256)


def _record(entry: Entry, path: Path, url: str, sha256: str) -> None:
    """Note where the file came from; the first digest seen stays."""
    size, seen = path.stat().st_size, datetime.now(UTC).strftime("%Y-%m-%d")
    record = dict(zip(FIELDS, (entry.name, url, sha256, size, seen, entry.licence), strict=True))
    atomic_text(path.with_name(RECORD), sealed(record))


def read_record(entry: Entry) -> dict[str, object] | None:
    """What was noted of the entry's file when it was first seen; None if it never was. CheckpointError for a damaged note."""
    path = place(entry).with_name(RECORD)
    if not path.exists():
        return None
    try:
        record = unsealed(path.read_text(), older=FIELDS)
        whole = all(isinstance(record[key], int if key == "size" else str) for key in FIELDS)
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: is damaged; remove it, and the digest is recorded anew")
    return record


def _first_seen(entry: Entry) -> str:
    record = read_record(entry)
    if record is None or (entry.sha256 and len(entry.sha256) == 64):
        return ""
    where = place(entry).with_name(RECORD)
    return f". (The digest was first seen on {one_line(record['seen'])}; remove {where} to trust another file)"


def _why_not(entry: Entry, path: Path, missing: list[str]) -> str:
    """Return the one line that says why a file cannot be had and what to do."""
    tried = f" Tried: {'; '.join(missing)}." if missing else ""
    if not entry.url:
        return f"{entry.name}: {entry.note.rstrip('.')}. Put the file at {path}, or pass its own path.{tried}"
    if offline():
        return (
            f"{entry.name}: not in the cache, and SSL_KD_OFFLINE is set. Put {entry.file} at {path}, or set "
            f"SSL_KD_MIRROR to a folder that holds it, or unset SSL_KD_OFFLINE.{tried}"
        )
    return f"{entry.name}: the publisher no longer has it where {entry.source} says.{tried} A copy goes to {path}"
