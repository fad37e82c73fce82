"""Write the features of any pictures to a file: `python -m ssl_kd.eval.embed`, `ssl-kd embed`.

    python -m ssl_kd.eval.embed --weights student.safetensors --images photos/ --out photos.npz

An .npz is a feature bank: `features` (N, D) float32, `ids` (N,), and `key`, which names weights, feature,
preprocessing, precision and images. `ssl_kd.eval.banks.load_bank` reads it, and so does `numpy.load`. A .npy or Parquet file
holds any number of rows, is resumed and appended to, and is written by several processes as by one (`extraction/tables.py`).
At s3://, gs:// or hf:// it is written in the cache folder and put in its place when it is whole.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_kd.errors import UserError, one_of
from ssl_kd.runtime.command_line import guarded, parse
from ssl_kd.runtime.files import atomic_text, sealed
from ssl_kd.runtime.ownership import refuse_replacing
from ssl_kd.runtime.stores import about, in_store, local_folder, put
from ssl_kd.validation import described, setting

from .runner.config import BY_HAND

if TYPE_CHECKING:
    from ssl_kd.data.sources.base import ImageSource

EXAMPLES = (
    "ssl-kd embed --weights runs/x/student.safetensors --images photos/ --out photos.npz",
    "find photos -name '*.jpg' | ssl-kd embed --weights runs/x/student.safetensors --images - --out photos.parquet",
)


@dataclass
class EmbedConfig:
    """Write the features of any pictures to a file: .npz, .npy with ids, or Parquet.

    Args:
        weights: checkpoint file or folder, or a name such as dino_vits16
        images: folder, zip, shards, one picture, a .txt file with one path on each line, or - for such lines on standard input
        out: file to write: .npz, .npy (with ids and what made them beside it) or .parquet; the last two go on where they were stopped. A path, or an address in a store (s3://bucket/x.npy)
        feature: which of the network's features (cls, pool, ...); empty: its family's default
        format: checkpoint format, only where it cannot be told from the file
        branch: read only the tensors below this place or prefix of the file, such as state_dict/module.encoder.
        arch: timm or torchvision/ architecture of a bare state dict, such as tf_efficientnet_lite0
        arch_args: extra arguments of arch, such as {img_size: 32}
        mean: of its pixels, for red, green and blue in [0, 1], as "0.5 0.5 0.5"; one number for all three
        std: likewise the standard deviation
        size: side in pixels that the network receives; 0: its own
        crop_ratio: share of the shorter side that the centre crop keeps, above 0 to 1; 0: its own
        batch_size: images per forward pass
        threads: decoding threads
        device: cpu or cuda
        precision: 32-true or bf16-mixed
        engine: how the network is run: folded (batch norm in the convolutions), eager, compiled or openvino
        max_unreadable: share of images that may fail to decode before it stops, 0 to 1
        verify: read every byte of the images once for the file's key, which names them; without, large sets are known by names, sizes, dates and inodes of all files and samples of some (docs/images.md)
        overwrite: replace a file of features that is there
        append: put pictures of new names behind the rows of a .npy or .parquet file that is there
        quiet: no progress bar
    """  # noqa: E501  the parser takes each setting's help from one line

    weights: str = ""
    images: str = setting("", "", tables={"": ["ssl_kd.data.open:SOURCES"]}, paths=True)
    out: str = ""
    feature: str = ""
    format: str = setting("", "", tables={"": ["ssl_kd.checkpoints.formats:FORMATS"]})
    branch: str = ""
    arch: str = ""
    arch_args: dict[str, object] = field(default_factory=dict)
    mean: str | float | list[float] = field(default="", metadata=described("", several=True))
    std: str | float | list[float] = field(default="", metadata=described("", several=True))
    size: int = 0
    crop_ratio: float = 0.0
    batch_size: int = 64
    threads: int = 2
    device: str = "cpu"
    precision: str = "32-true"
    engine: str = "folded"
    max_unreadable: float = 0.01
    verify: bool = False
    overwrite: bool = False
    append: bool = False
    quiet: bool = False


def embed_images(config: EmbedConfig) -> str:
    """Write the bank that a configuration describes and return where it is. UserError for bad input, before any work."""
    for name in ("weights", "images", "out"):
        if not getattr(config, name):
            raise UserError(f"{name}: expected a path; got nothing (see --help)")
    if in_store(config.out):
        return _embed_into_store(config)
    _embed(config, Path(config.out))
    return config.out


def _embed_into_store(config: EmbedConfig) -> str:
    """Write in the cache, then put every file in its place in the store, the one that vouches for the others last."""
    from ssl_kd.runtime.download import download

    from .extraction.tables import kind_of

    there, _, name = config.out.rpartition("/")
    out = local_folder("embeddings", config.out) / name
    files = (out,) if out.suffix == ".npz" else kind_of(out).files(out)
    last = f"{there}/{files[-1].name}"
    before = about(last)
    upload = out.with_name(
        f"{name}.upload"
    )  # there while an upload goes on: of which call, and what the store had before
    this_call = sealed({"config": asdict(config), "before": before})
    if os.environ.get("WORLD_SIZE", "1") == "1" and upload.exists():
        stopped = upload.read_text()
        if json.loads(stopped)["before"] == json.loads(this_call)["before"] and files[-1].exists():
            _upload(config, files, upload)
            if stopped == this_call:
                print(f"{config.out}: finished the upload that was stopped; --overwrite embeds anew", file=sys.stderr)
                return config.out
            before = about(last)
    if before and not (config.overwrite or config.append):
        raise UserError(f"out: {config.out} is there already; remove it, or pass --overwrite or --append")
    for file in files:
        if before:  # to append to, or to see that it is ours to replace
            download(f"{there}/{file.name}", file, quiet=True)
        else:
            file.unlink(missing_ok=True)
    _embed(config, out)
    if os.environ.get("RANK", "0") == "0":
        if about(last) != before:
            raise UserError(f"out: {config.out} was changed by another program meanwhile; the new rows are in {out}")
        atomic_text(upload, this_call)
        _upload(config, files, upload)
    return config.out


def _upload(config: EmbedConfig, files: Sequence[Path], upload: Path) -> None:
    """Put the files of a whole table in their places in the store, the last one last, and forget them here."""
    for file in files:
        put(file, f"{config.out.rpartition('/')[0]}/{file.name}")
    upload.unlink()
    for file in files:
        file.unlink()


def _embed(config: EmbedConfig, out: Path) -> None:
    from .extraction.tables import kind_of

    kind = None if out.suffix == ".npz" else kind_of(out)
    if kind:
        kind.finish(out)
    if out.exists() and not (config.overwrite or (config.append and kind)):
        hint = " or --append" if kind else ""
        raise UserError(f"out: {out} is there already; remove it or pass --overwrite{hint}")
    refuse_replacing("out", out, (lambda path: kind.read(path) is not None) if kind else _is_a_bank)
    if kind and not out.exists() and not os.path.lexists(f"{out}.work"):  # which a kill between two of them leaves
        for file in kind.files(out):
            refuse_replacing("out", file, lambda path: False)
    if kind is None and (config.append or os.environ.get("WORLD_SIZE", "1") != "1"):
        raise UserError(
            "out: .npz is written by one process, in one go; name a .npy or .parquet file to append or share"
        )
    if min(config.batch_size, config.threads) < 1 or config.size < 0 or not 0 <= config.crop_ratio <= 1:
        raise UserError("expected batch_size and threads of at least 1, size of at least 0 and crop_ratio from 0 to 1")
    from ssl_kd.checkpoints.loading import load_teacher
    from ssl_kd.models.factory import must_be_an_architecture
    from ssl_kd.runtime.files import probe

    from .extraction.engines import ENGINES
    from .extraction.extract import extract
    from .extraction.streaming import write_table

    one_of("engine", config.engine, list(ENGINES))
    must_be_an_architecture("arch", config.arch)
    images = _opened(config)
    given = {name: getattr(config, name) or None for name in ("feature", *BY_HAND)}
    encoder = load_teacher(config.weights, **given, size=config.size if config.arch else None)
    if config.size or config.crop_ratio:
        size = config.size or encoder.preprocessing.size
        encoder.preprocessing = encoder.preprocessing.at(size, config.crop_ratio or None)
    probe(out)
    if kind is not None:
        how = {name: getattr(config, name) for name in ("batch_size", "device", "precision", "threads", "engine")}
        write_table(out, encoder, images, config.append, config.quiet, **how)
        return
    bank = extract(
        encoder,
        images,
        None,
        config.batch_size,
        config.device,
        config.precision,
        config.threads,
        config.quiet,
        f"features of {images.name}",
        config.engine,
    )
    bank.save(out)


def _opened(config: EmbedConfig) -> ImageSource:
    """The pictures; "-" are those that standard input names."""
    from ssl_kd.data.open import open_images
    from ssl_kd.data.sources.files import FileImages, paths_in

    if config.images != "-":
        return open_images(config.images, config.max_unreadable, config.verify)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("images: several processes cannot share standard input; write the paths to a .txt file")
    return FileImages(paths_in(sys.stdin, "standard input"), config.max_unreadable, "standard input")


def _is_a_bank(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return {"features.npy", "ids.npy", "key.npy"} <= set(archive.namelist())
    except zipfile.BadZipFile:
        return False


def main(argv: Sequence[str] | None = None, prog: str = "python -m ssl_kd.eval.embed") -> int:
    """Run from a command line; returns the exit code (2 for bad input)."""

    def run(words: Sequence[str]) -> int:
        config = parse(EmbedConfig, words, prog, examples=EXAMPLES)
        path = embed_images(config)
        if os.environ.get("RANK", "0") == "0":
            print(path)
            print(
                f"Next: ssl-kd index build --weights {config.weights} --images {config.images} --out photos.index",
                file=sys.stderr,
            )
        return 0

    return guarded(run, sys.argv[1:] if argv is None else argv, prog)


if __name__ == "__main__":
    raise SystemExit(main())
