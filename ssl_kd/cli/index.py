"""`ssl-kd index` (build, add, remove, train, info, verify) and `ssl-kd search`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ssl_kd.errors import UserError, nearest, shown_name
from ssl_kd.runtime.command_line import OneLineParser, parse, parser_for
from ssl_kd.search.config import (
    AddConfig,
    BuildConfig,
    Embedding,
    LookConfig,
    RemoveConfig,
    SearchConfig,
    TrainConfig,
)
from ssl_kd.validation import Settings, check_settings

if TYPE_CHECKING:
    from ssl_kd.search.index import Change, Found, Index, OfEmbedding


def build(argv: Sequence[str]) -> int:
    """Index the pictures of a source."""
    example = "ssl-kd index build --weights runs/x/student.safetensors --images photos/ --out photos.index"
    config = _checked(parse(BuildConfig, argv, "ssl-kd index build", (example,)), "weights", "images", "out")
    from ssl_kd.search.filling import opened
    from ssl_kd.search.index import Index

    images = opened(config.images, config.max_unreadable)
    index = Index.create_or_open(
        config.out, config.weights, config.feature, config.norm, config.factory, config.reading()
    )
    index.must_hold_some_of(images)
    change = index.add(images, quiet=config.quiet, **_embedding(config))
    print(_said(index, change))
    if config.factory:
        _train(index, config.factory)
    print(f"Next: ssl-kd search --index {config.out} query.jpg")
    return 0


def add(argv: Sequence[str]) -> int:
    """Add the pictures of a source."""
    example = "ssl-kd index add --index photos.index --images holiday/"
    config = _checked(_of_an_index(AddConfig, argv, "ssl-kd index add", (example,)), "index", "images")
    index = _opened(config.index, config.weights, reading=_beside(config))
    change = index.add(
        config.images, config.replace, quiet=config.quiet, max_unreadable=config.max_unreadable, **_embedding(config)
    )
    print(_said(index, change))
    print(f"Next: ssl-kd search --index {config.index} query.jpg")
    return 0


def remove(argv: Sequence[str]) -> int:
    """Take pictures out by their names."""
    examples = ("ssl-kd index remove --index photos.index photos/a.jpg photos/old/",)
    config = _checked(_of_an_index(RemoveConfig, argv, "ssl-kd index remove", examples, "names"), "index")
    if not config.names and not config.missing:
        raise UserError("names: expected the pictures to remove, or --missing; got nothing (see --help)")
    index = _opened(config.index)
    names = list(dict.fromkeys([*config.names, *(index.missing() if config.missing else ())]))
    count = index.remove(names) if names else 0
    print(f"{config.index}: {_pictures(count)} removed, {len(index):,} left")
    for source in index.absent_sources() if config.missing else ():
        print(
            f"{shown_name(source)} is not there as a whole (an unmounted disk?): its pictures were left in; remove them by name"
        )
    print(f"Next: ssl-kd index verify {config.index}")
    return 0


def train(argv: Sequence[str]) -> int:
    """Put an approximate index beside the vectors."""
    examples = ("ssl-kd index train --index photos.index --factory 'IVF1024,Flat nprobe=16'",)
    config = _checked(_of_an_index(TrainConfig, argv, "ssl-kd index train", examples), "index", "factory")
    _train(_opened(config.index), config.factory)
    print(f"Next: ssl-kd search --index {config.index} query.jpg")
    return 0


def info(argv: Sequence[str]) -> int:
    """Say what an index is."""
    config, index = _looked_at(argv, "info")
    found = index.info()
    if config.json:
        print(json.dumps(found))
        return 0
    encoder, fast = index.space, index.store.head.fast
    kind = "cosine distance of unit vectors" if index.norm == "unit" else "Euclidean distance"
    print(f"{shown_name(str(found['index']))}: {_pictures(len(index))}, {found['removed']:,} removed")
    print(f"  encoder        {shown_name(encoder.origin)} ({encoder.arch}, feature {encoder.feature})")
    print(f"  weights        {shown_name(index.weights) or 'not named'}, SHA-256 {encoder.digest}")
    print(f"  preprocessing  {index.pixels}")
    print(f"  vectors        {encoder.width} wide, {kind}, {int(str(found['bytes'])) / 1e6:,.1f} MB")
    print(f"  search         {_recall(fast) if fast else 'exact'}")
    print(f"Next: ssl-kd search --index {config.index[0]} query.jpg")
    return 0


def verify(argv: Sequence[str]) -> int:
    """Compare every byte of an index with its check sums."""
    _, index = _looked_at(argv, "verify")
    index.verify()
    print(f"{shown_name(index.place)}: {_pictures(len(index))}, every byte is as it was written")
    print(f"Next: ssl-kd search --index {index.place} query.jpg")
    return 0


def search(argv: Sequence[str]) -> int:
    """Find the pictures of an index that are nearest to others."""
    examples = (
        "ssl-kd search --index photos.index query.jpg",
        "ssl-kd search --index photos.index queries/ --k 5 --json",
        "ssl-kd search --index photos.index query.jpg --sheet found.png",
    )
    config = _checked(_of_an_index(SearchConfig, argv, "ssl-kd search", examples, "queries"), "index")
    if not config.queries:
        raise UserError("queries: expected a picture or a folder, got nothing (see --help)")
    from ssl_kd.search import show
    from ssl_kd.search.filling import opened_queries
    from ssl_kd.search.index import same_answers

    index = _opened(config.index, config.weights, config.feature, _beside(config))
    sources = [opened_queries(query) for query in config.queries]
    if (config.sheet or config.gallery) and len(sources) > 1:
        raise UserError("sheet, gallery: expected one source of queries; put several pictures into a folder or list")
    told: list[str] = []
    if remark := index.remark():
        print(f"note: {remark}", file=sys.stderr)
    within, any_hits = None if config.within < 0 else config.within, False
    answers: list[Found] = []
    for source in sources:
        found = index.search(source, config.k, within, **_embedding(config))
        any_hits = any_hits or any(one.hits for one in found)
        answers += found
        for line in show.json_lines(found) if config.json else show.lines(found):
            print(line)
        for path, write in ((config.sheet, show.sheet), (config.gallery, show.gallery)):
            if path and (lacking := write(index, source, found, Path(path))):
                print(f"{path} shows them, {_grey(lacking)}", file=sys.stderr)
            elif path:
                told.append(f"{path} shows them")
    if same_answers(answers, len(index)):
        print(
            f"note: all {len(answers):,} queries got the very same pictures: the encoder cannot tell these queries apart and "
            "may have learned nothing; `ssl-kd eval` compares it with a random network",
            file=sys.stderr,
        )
    if not (config.json or config.sheet or config.gallery):
        told.append(f"Next: ssl-kd search {_next(argv, config.queries) if any_hits else _without(argv, '--within')}")
    if config.k > len(index) > 0:
        told.append(f"k: the index holds {_pictures(len(index))}, all of them are shown")
    for line in [] if config.quiet else told:
        print(line, file=sys.stderr)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "build": build,
    "add": add,
    "remove": remove,
    "train": train,
    "info": info,
    "verify": verify,
}


# By command: its settings, and the field that takes words.
SETTINGS: dict[str, tuple[type, str]] = {
    "build": (BuildConfig, ""),
    "add": (AddConfig, ""),
    "remove": (RemoveConfig, "names"),
    "train": (TrainConfig, ""),
    "info": (LookConfig, "index"),
    "verify": (LookConfig, "index"),
}


def main(argv: Sequence[str]) -> int:
    """Run one of the commands of `ssl-kd index`."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        _parser().print_help()
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        hint = nearest(argv[0], list(COMMANDS))
        raise UserError(f"index: expected {', '.join(COMMANDS)}; got {shown_name(argv[0])!r}.{hint}")
    return COMMANDS[argv[0]](argv[1:])


def _parser() -> OneLineParser:
    """All commands of `ssl-kd index` at a glance."""
    parser = OneLineParser("ssl-kd index", description="Index pictures on disk. COMMAND --help lists every option.")
    verbs = parser.add_subparsers(metavar="COMMAND")
    for name, (settings, words) in SETTINGS.items():
        prog, about = f"ssl-kd index {name}", (COMMANDS[name].__doc__ or "").splitlines()[0]
        # argparse makes its subparsers itself: it is given the options of ours
        verbs.add_parser(name, help=about, parents=[parser_for(settings, prog, words=words)], add_help=False)
    return parser


def _of_an_index(
    settings: type[Settings], argv: Sequence[str], prog: str, examples: Sequence[str], words: str = ""
) -> Settings:
    """The settings of a command that takes its index by name; UserError with the right line where it stands first."""
    from ssl_kd.search.store import is_index

    if argv and not argv[0].startswith("-") and "--index" not in argv and is_index(Path(argv[0])):
        line = f"{prog} --index {shown_name(shlex.join(argv))}" if words else examples[0]
        raise UserError(f"index: expected it behind --index, as in: {line}")
    found = parse(settings, argv, prog, examples, words)
    if not vars(found)["index"]:
        raise UserError(f"index: expected a value, got nothing; as in: {examples[0]} (see --help)")
    return found


def _checked(config: Settings, *needed: str) -> Settings:
    """The settings, all there and in their ranges."""
    for name in needed:
        if not getattr(config, name):
            raise UserError(f"{name}: expected a value, got nothing (see --help)")
    check_settings(config)
    return config


def _embedding(config: Embedding) -> OfEmbedding:
    return {"batch_size": config.batch_size, "threads": config.threads, "device": config.device}


def _beside(config: AddConfig | SearchConfig) -> dict[str, object]:
    """How named weights are read. UserError where none are: the index knows how its own are."""
    reading = config.reading()
    if reading and not config.weights:
        raise UserError(f"{next(iter(reading))}: says how --weights is read, and no weights are given")
    return reading


def _opened(path: str, weights: str = "", feature: str = "", reading: Mapping[str, object] | None = None) -> Index:
    from ssl_kd.search.index import Index

    return Index.open(path, weights or None, feature, reading)


def _looked_at(argv: Sequence[str], command: str) -> tuple[LookConfig, Index]:
    config = parse(LookConfig, argv, f"ssl-kd index {command}", (f"ssl-kd index {command} photos.index",), "index")
    if len(config.index) != 1:
        raise UserError(f"index: expected one index, got {len(config.index)} (see --help)")
    return config, _opened(config.index[0])


def _grey(lacking: Mapping[str, str]) -> str:
    """What a sheet or a gallery lacks, in words."""
    name, why = next(iter(lacking.items()))
    return (
        f"with grey boxes for {_pictures(len(lacking))} of the index that cannot be read again "
        f"({shown_name(name)}: {shown_name(why)})"
    )


def _next(argv: Sequence[str], queries: Sequence[str]) -> str:
    """The same search of the first source alone, drawn."""
    return f"{shown_name(shlex.join(word for word in argv if word not in queries[1:]))} --sheet found.png"


def _without(argv: Sequence[str], option: str) -> str:
    """The same search without an option and its value."""
    pairs = zip(argv, ["", *argv], strict=False)
    return shown_name(shlex.join(w for w, before in pairs if option not in (w.partition("=")[0], before)))


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _train(index: Index, factory: str) -> None:
    index.train(factory)
    fast = index.store.head.fast
    print(f"{shown_name(index.place)}: {_recall(fast) if fast else 'exact search'}")


def _recall(fast: dict[str, object]) -> str:
    shares = ", ".join(
        f"{100 * share:.1f} % of the exact {k}" for k, share in cast(Mapping[str, float], fast["recall"]).items()
    )
    return f"{fast['factory']}, which finds {shares or 'all'} nearest (of {fast['rows']:,} rows, by a sample of them)"


def _said(index: Index, change: Change) -> str:
    parts = [f"{_pictures(change.added)} added"]
    parts += [f"{change.replaced:,} made anew"] if change.replaced else []
    parts += [f"{change.there:,} were there already"] if change.there else []
    parts += [f"{len(change.unreadable):,} could not be read"] if change.unreadable else []
    lines = [f"{index.place}: {', '.join(parts)}; it holds {len(index):,}"]
    lines += [f"  {shown_name(name)}: {why}" for name, why in list(change.unreadable.items())[:10]]
    return "\n".join(lines)
