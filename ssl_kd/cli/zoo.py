"""The zoo on the command line.

ssl-kd zoo list swav                 # what there is
ssl-kd zoo show moco_v2_r50_800ep    # one of them: licence, scores, source, where the file goes
ssl-kd zoo download dino_vits16      # bring it; load_teacher("dino_vits16") does so by itself
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ssl_kd.checkpoints.zoo import fetch, find, place, read_record
from ssl_kd.checkpoints.zoo_entries import ZOO, Entry
from ssl_kd.checkpoints.zoo_protocols import commands
from ssl_kd.errors import CheckpointError, one_line
from ssl_kd.runtime.command_line import OneLineParser

COLUMNS = ("name", "method", "network", "width", "k-NN", "linear", "licence", "")


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
        following = "" if chosen.json else "ssl-kd zoo show NAME, then ssl-kd zoo download NAME"
    elif chosen.verb == "show":
        print(json.dumps(_as_json(find(chosen.name)), indent=1) if chosen.json else show(chosen.name))
        following = "" if chosen.json else f"ssl-kd zoo download {chosen.name}"
    else:
        for name in chosen.names:
            print(fetch(name, chosen.quiet))
        first = chosen.names[0]
        following = "" if chosen.quiet else f"ssl-kd distill --teacher {first} --images photos/ --out runs/student"
    if following:
        print(f"Next: {following}", file=sys.stderr)
    return 0


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
    lines = {
        "name": entry.name,
        "method": f"{entry.method}, {entry.network}, width {entry.width}{parameters}",
        "scores": (", ".join(scores) + " (top-1, %, ImageNet-1k)") if scores else "none on ImageNet-1k",
        "check": commands(entry),
        "licence": entry.licence + (" - non-commercial, says the publisher" if entry.non_commercial else ""),
        "source": entry.source,
        "file": f"{entry.file}, {size}",
        "url": entry.url or "none",
        "digest": digest + trust,
        "cached": f"{path}{' (here)' if path.exists() else ' (not there)'}",
        "seen": _seen(entry),
        "also": ", ".join(entry.aliases) or "-",
        "note": entry.note or "-",
    }
    return "\n".join(f"{key:<8} {text}" for key, text in lines.items())


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
    return asdict(entry) | {"path": str(place(entry)), "cached": place(entry).exists(), "origin": read_record(entry)}


def _seen(entry: Entry) -> str:
    """When the file came, with what digest, from where: a file that a hand may have changed, so printable only."""
    record = read_record(entry)
    return one_line(f"{record['seen']}, sha256 {record['sha256']}, from {record['url']}", 400) if record else "never"
