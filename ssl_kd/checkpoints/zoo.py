"""Names -> weight files: what is published, where it is, what it scored, and a checked copy in the cache.

    ssl-kd zoo list swav                 # what there is
    ssl-kd zoo show moco_v2_r50_800ep    # one of them: licence, scores, source, where the file goes
    ssl-kd zoo download dino_vits16      # bring it; load_teacher("dino_vits16") does so by itself

Environment: SSL_KD_CACHE (folder; default: the platform's cache folder), SSL_KD_MIRROR (folder or URL that is asked
before the publisher), SSL_KD_OFFLINE=1 (no network at all). A digest that nobody publishes is recorded when the file is
first seen and holds from then on (trust on first use).
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from ssl_kd.checkpoints.zoo_entries import ZOO, Entry
from ssl_kd.errors import CheckpointError, nearest
from ssl_kd.runtime.cache import cache_folder
from ssl_kd.runtime.command_line import OneLineParser
from ssl_kd.runtime.download import Check, DownloadError, MissingError, digest_of, download, offline
from ssl_kd.runtime.files import atomically

RECORD = "origin.json"  # beside each file: where it came from, when, and its digest
UNIQUE_FILES = {file for file, count in Counter(entry.file for entry in ZOO.values()).items() if count == 1}
COLUMNS = ("name", "method", "network", "width", "k-NN", "linear", "licence", "")


def fetch(name: str, quiet: bool = False) -> Path:
    """Return the path of a teacher's weight file, downloading it into the cache if it is not there yet.

    name: in `ZOO`, or one of its aliases (`facebookresearch/dino:dino_vits16`, `vit_small_patch16_224.dino`, ...).
    Raises CheckpointError for an unknown name or a file that cannot be had, DownloadError when the transfer fails.
    """
    entry = find(name)
    path = place(entry)
    if path.exists():
        _check_cached(entry, path, thorough=False)
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


def list_table(words: Sequence[str] = ()) -> str:
    """Return the zoo as text, one line a teacher; words: all of which must occur in a line."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for entry in _matching(words):
        here = "cached" if place(entry).exists() else "" if entry.url else "not for download"
        scores = [f"{s:.1f}" if s is not None else "-" for s in (entry.knn, entry.linear)]
        rows.append((entry.name, entry.method, entry.network, str(entry.width), *scores, entry.licence, here))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def show(name: str) -> str:
    """Return all that is known of one teacher, as text."""
    entry = find(name)
    path = place(entry)
    size = f"{entry.size:,} bytes" if entry.size else "size not published"
    digest = f"sha256 {entry.sha256}" if entry.sha256 else f"md5 {entry.md5}" if entry.md5 else "none published"
    trust = (
        "" if entry.sha256 and len(entry.sha256) == 64 else "; the whole sha256 is recorded when the file is first seen"
    )
    parameters = f", {entry.parameters} M parameters" if entry.parameters else ""
    scores = [f"{kind} {s}" for kind, s in (("k-NN", entry.knn), ("linear", entry.linear)) if s is not None]
    record = _read_record(entry)
    lines = {
        "name": entry.name,
        "method": f"{entry.method}, {entry.network}, width {entry.width}{parameters}",
        "scores": (", ".join(scores) + " (top-1, %, ImageNet-1k)") if scores else "none on ImageNet-1k",
        "licence": entry.licence + (" - non-commercial, says the publisher" if entry.non_commercial else ""),
        "source": entry.source,
        "file": f"{entry.file}, {size}",
        "url": entry.url or "none",
        "digest": digest + trust,
        "cached": f"{path}{' (here)' if path.exists() else ' (not there)'}",
        "seen": f"{record['seen']}, sha256 {record['sha256']}, from {record['url']}" if record else "never",
        "also": ", ".join(entry.aliases) or "-",
        "note": entry.note or "-",
    }
    return "\n".join(f"{key:<8} {text}" for key, text in lines.items())


def fetch_checked(name: str, quiet: bool = False) -> Path:
    """Return the path as `fetch` does, after reading the whole file against its digest if it was there already."""
    entry = find(name)
    if place(entry).exists():
        _check_cached(entry, place(entry), thorough=True)
    return fetch(name, quiet)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ssl-kd zoo list|show|download`; return the exit code. UserErrors are left to the caller."""
    parser = OneLineParser(prog="ssl-kd zoo", description="Published teachers: list, show, download.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("list", help="one line a teacher: network, published scores, licence")
    verb.add_argument("words", nargs="*", help="show only lines with all of these words, such as: swav w2")
    verb.add_argument("--json", action="store_true", help="every field, as JSON")
    verb = verbs.add_parser("show", help="all about one teacher")
    verb.add_argument("name")
    verb.add_argument("--json", action="store_true", help="every field, as JSON")
    verb = verbs.add_parser("download", help="bring weight files into the cache and print their paths")
    verb.add_argument("names", nargs="+", metavar="name")
    verb.add_argument("--quiet", action="store_true", help="no progress bar and no licence line")
    chosen = parser.parse_args(argv)
    if chosen.verb == "list":
        entries = _matching(chosen.words)
        print(json.dumps([_as_json(e) for e in entries], indent=1) if chosen.json else list_table(chosen.words))
    elif chosen.verb == "show":
        print(json.dumps(_as_json(find(chosen.name)), indent=1) if chosen.json else show(chosen.name))
    else:
        for name in chosen.names:
            print(fetch_checked(name, chosen.quiet))
    return 0


def _plain(name: str) -> str:
    return str(name).strip().lower().replace("-", "_").removeprefix("timm/")


def _names() -> dict[str, str]:
    return {_plain(other): entry.name for entry in ZOO.values() for other in (entry.name, *entry.aliases)}


def _matching(words: Sequence[str]) -> list[Entry]:
    found = [
        entry
        for entry in ZOO.values()
        if all(w.lower() in " ".join((entry.name, entry.method, entry.network, entry.licence)).lower() for w in words)
    ]
    if not found:
        raise CheckpointError(f"no teacher in the zoo has all of: {', '.join(words)}; `ssl-kd zoo list` shows all")
    return found


def _as_json(entry: Entry) -> dict[str, object]:
    return asdict(entry) | {"path": str(place(entry)), "cached": place(entry).exists(), "origin": _read_record(entry)}


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
    recorded = (_read_record(entry) or {}).get("sha256", "")
    longest = recorded if recorded.startswith(sha256) else sha256
    return Check(entry.size, longest or None, entry.md5)


def _check_cached(entry: Entry, path: Path, thorough: bool) -> None:
    """Raise CheckpointError when the cached file is not what was recorded; record a file that was put there by hand."""
    record = _read_record(entry)
    remedy = f"remove {path} and run `ssl-kd zoo download {entry.name}`"
    if record and record["size"] != path.stat().st_size:
        raise CheckpointError(
            f"{path}: is {path.stat().st_size:,} bytes, was {record['size']:,} when it came; {remedy}"
        )
    if record and not thorough:
        return
    sha256, wanted = digest_of(path), _expected(entry)
    if not sha256.startswith(wanted.sha256 or "") or not (
        wanted.md5 is None or digest_of(path, "md5").startswith(wanted.md5)
    ):
        raise CheckpointError(f"{path}: its digest is {sha256}, not the expected one; {remedy}")
    if not record:
        _record(entry, path, "put there by hand", sha256)


def _record(entry: Entry, path: Path, url: str, sha256: str) -> None:
    """Note where the file came from; the first digest seen stays."""
    record = {
        "name": entry.name,
        "url": url,
        "sha256": sha256,
        "size": path.stat().st_size,
        "seen": datetime.now(UTC).strftime("%Y-%m-%d"),
        "licence": entry.licence,
    }
    atomically(path.with_name(RECORD), lambda file: file.write(json.dumps(record, indent=1).encode()))


def _read_record(entry: Entry) -> dict | None:
    path = place(entry).with_name(RECORD)
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("name", "url", "sha256", "size", "seen", "licence")}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: is damaged; remove it, and the digest is recorded anew") from None


def _first_seen(entry: Entry) -> str:
    record = _read_record(entry)
    if record is None or (entry.sha256 and len(entry.sha256) == 64):
        return ""
    where = place(entry).with_name(RECORD)
    return f". (The digest was first seen on {record['seen']}; remove {where} to trust another file)"


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
