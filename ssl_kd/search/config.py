"""The settings of `ssl-kd index` and `ssl-kd search`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from ssl_kd.checkpoints.reading import HELP
from ssl_kd.validation import described, setting


@dataclass
class Embedding:
    """How pictures are read and embedded."""

    batch_size: int = setting(64, "images per forward pass", least=1)
    threads: int = setting(2, "decoding threads", least=0)
    device: str = setting("cpu", "cpu or cuda")


@dataclass
class ByHand:
    """How the weights are read, where their file does not say so itself."""

    format: str = setting("", HELP["format"], tables={"": ["ssl_kd.checkpoints.formats:FORMATS"]})
    branch: str = setting("", HELP["branch"])
    arch: str = setting("", HELP["arch"])
    arch_args: dict[str, object] = field(default_factory=dict, metadata=described(HELP["arch_args"]))
    mean: str | float | list[float] = field(default="", metadata=described(HELP["mean"], several=True))
    std: str | float | list[float] = field(default="", metadata=described(HELP["std"], several=True))
    size: int = setting(0, HELP["size"], least=0)

    def reading(self) -> dict[str, object]:
        """What was given, as `load_teacher` takes it."""
        found = {one.name: getattr(self, one.name) for one in fields(ByHand)}
        return {name: value for name, value in found.items() if value}


@dataclass
class BuildConfig(ByHand, Embedding):
    """Index the pictures of a source; the same command resumes where it was stopped."""

    weights: str = setting("", "checkpoint file, or a name such as dino_vits16", first=True)
    images: str = setting("", "folder, zip, shards, one picture, or a .txt file with one path on each line", first=True)
    out: str = setting("", "folder to write the index into", first=True)
    feature: str = setting("", "which of the network's features; empty: its family's default")
    norm: Literal["unit", "none"] = setting("unit", "unit: cosine distance; none: Euclidean, of features as they are")
    factory: str = setting("", "approximate index as faiss writes it (IVF1024,Flat nprobe=16); empty: exact search")
    max_unreadable: float = setting(0.01, "share of images that may fail to decode", least=0, most=1)
    quiet: bool = setting(False, "no progress bar")


@dataclass
class AddConfig(ByHand, Embedding):
    """Add the pictures of a source to an index."""

    index: str = setting("", "the index", first=True)
    images: str = setting("", "folder, zip, shards, one picture, or a .txt file with one path on each line", first=True)
    weights: str = setting("", "the index's encoder, where its file has moved")
    replace: bool = setting(False, "embed pictures anew whose names are there already")
    max_unreadable: float = setting(0.01, "share of images that may fail to decode", least=0, most=1)
    quiet: bool = setting(False, "no progress bar")


@dataclass
class RemoveConfig:
    """Take pictures out of an index by their names; a name that ends in / takes all below it."""

    index: str = setting("", "the index", first=True)
    missing: bool = setting(False, "take out all whose files are not on the disk any more")
    names: list[str] = field(default_factory=list, metadata=described("names as search prints them"))


@dataclass
class TrainConfig:
    """Put an approximate index beside the vectors of an index, and measure what it finds of the exact neighbours."""

    index: str = setting("", "the index", first=True)
    factory: str = setting("", "as faiss writes it: IVF1024,Flat nprobe=16 or HNSW32; Flat takes it away", first=True)


@dataclass
class LookConfig:
    """Say what an index is."""

    index: list[str] = field(default_factory=list, metadata=described("the index"))
    json: bool = setting(False, "print JSON")


@dataclass
class SearchConfig(ByHand, Embedding):
    """Find the pictures of an index that are nearest to others."""

    index: str = setting("", "the index", first=True)
    k: int = setting(10, "pictures to find for each query", least=1, first=True)
    queries: list[str] = field(default_factory=list, metadata=described("pictures, folders or other sources"))
    within: float = setting(-1.0, "largest distance; below 0: any")
    weights: str = setting("", "encoder of the queries; empty: the one that the index names")
    feature: str = setting("", "which of its features; empty: its family's default")
    json: bool = setting(False, "print one JSON object for each query")
    sheet: str = setting("", "PNG to write: a line of pictures for each query")
    gallery: str = setting("", "HTML page to write, with the pictures in it")
    quiet: bool = setting(False, "nothing but what was found, and warnings")
