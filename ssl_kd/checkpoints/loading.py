"""The only door between files and Encoders: safe reading, strict loading, and a report of what was found.

teacher = load_teacher("dino_deitsmall16_pretrain.pth")      # frozen, eval mode, its authors' preprocessing
print(inspect("dino_deitsmall16_pretrain.pth"))              # what it is, without building the network
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ssl_kd.checkpoints.agreement import of_transformers, timms
from ssl_kd.checkpoints.assembly import LARGE, assemble, blueprint
from ssl_kd.checkpoints.by_architecture import by_architecture
from ssl_kd.checkpoints.formats import FORMATS, LAST, Contents, Format, Weights, recognise
from ssl_kd.checkpoints.formats.report import Report
from ssl_kd.checkpoints.formats.student import STUDENT, card
from ssl_kd.checkpoints.formats.unknown import places
from ssl_kd.checkpoints.formats.weights import UNKNOWN, backbones, shown
from ssl_kd.checkpoints.licences import UNSTATED
from ssl_kd.checkpoints.pixels_record import recorded
from ssl_kd.checkpoints.programs import describe_program, is_program, load_program
from ssl_kd.checkpoints.reading import Reading, reading
from ssl_kd.checkpoints.sources import Source, contents, source
from ssl_kd.checkpoints.wrappers import at_a_level, branch_of, unwrapped
from ssl_kd.errors import (
    BrokenCheckpoint,
    CheckpointError,
    UnknownCheckpoint,
    UserError,
    nearest,
    nearest_files,
    one_line,
)
from ssl_kd.models.encoder import Encoder, digest_of, frozen, not_finite
from ssl_kd.models.factory import must_be_an_architecture

__all__ = ["assemble", "contents", "convert", "inspect", "load_teacher", "read", "source"]

BY_HAND = (
    " Any other network of timm or torchvision is read by arch=, mean= and std= (docs/teachers.md); as options they are "
    "--arch, or --teacher-arch of distill, and so on."
)
SAYS_ALL = (
    "a program and its card say all; give nothing but feature beside it (what is wrong in a card is mended there)"
)
NOT_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")


def read(path: str | os.PathLike[str]) -> object:
    """The object in a weight file (torch.save of any age, or safetensors) as plain data; nothing in it is run."""
    file = contents(Path(path))
    try:
        return file.tree
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error


def load_teacher(
    path_or_name: str | os.PathLike[str],
    feature: str | None = None,
    format: str | None = None,  # noqa: A002
    *,
    branch: str | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    mean: object = None,
    std: object = None,
    size: int | None = None,
) -> Encoder:
    """The frozen Encoder of a checkpoint, in eval mode, with the preprocessing of its authors.

    path_or_name: a file; the index of a sharded one; a folder as transformers or timm write it; `hf-hub:ORG/NAME`; a name
    of the zoo (`ssl-kd zoo list`); `timm/NAME` or `torchvision/NAME` for the weights that those libraries publish; or an
    .onnx or OpenVINO .xml file with its card (`checkpoints.programs`), which runs on the CPU and has one feature.

    feature: one of the names that the architecture offers (`cls`, `cls4`, `cls_avg`, `pool`, ...); None is the one that
    the authors evaluate. format: a name in `formats.FORMATS`, for a file that does not say what it is. branch: the place
    of the network in the file, such as `state_dict/module.encoder.`. arch, arch_args: a timm or `torchvision/`
    architecture, for a bare state dict of it. mean, std: three numbers (or one) for pixels in [0, 1]; size: a side in
    pixels. What is given by hand wins. Every tensor of the backbone is loaded or the load fails: CheckpointError.
    """
    given = reading(feature, format, branch, arch, arch_args, mean, std, size)
    must_be_an_architecture("arch", given.arch)
    path, licence, name, method = Path(path_or_name), "", "", ""
    if not path.exists():
        found = by_name(str(path_or_name), given)
        if isinstance(found, Encoder):
            return frozen(found)
        path, name, licence, method, form = found
        given = replace(given, format=given.format or form or None)
    if is_program(path):
        if given.by_hand:
            raise UserError(f"{path}: {SAYS_ALL}")
        return frozen(load_program(path, feature))
    opened = source(path, name)
    try:
        weights = weights_of(opened, given, claimed(opened, given), method)
        encoder = frozen(assemble(weights, given.feature))
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    encoder.licence = licence or opened.licence() or UNSTATED
    return encoder


def by_name(name: str, given: Reading) -> Encoder | tuple[Path, str, str, str, str]:
    """The file or folder of that name, its name on the hub, its licence, its method in small letters and its format.

    Or an Encoder with the weights that timm or torchvision publishes.
    """
    from ssl_kd.checkpoints import hub, library_weights, zoo

    if hub.is_hub_name(name):
        folder, repo = hub.fetch_hub(name)
        return folder, repo, "", "", ""
    if name.startswith(tuple(library_weights.PUBLISHERS)):
        if given.by_hand:
            raise UserError(f"{one_line(name, 200)}: its library says what it is; give nothing but feature beside it")
        return library_weights.load(name, given.feature)
    if zoo.known(name):
        entry = zoo.find(name)  # its publisher says what the file alone need not
        return zoo.fetch(name), "", entry.licence, entry.method.lower(), entry.format
    raise CheckpointError(
        f"{one_line(name, 200)}: no such file, and no such name in the zoo.{nearest_files(name) or nearest(name, list(zoo.ZOO))}"
    )


def claimed(opened: Source, given: Reading) -> tuple[Contents, Format | None]:
    """The part of a source that is read, and the format that reads it; None where an architecture by hand or a folder does."""
    file = branch_of(opened.file, given.branch) if given.branch else opened.file
    if given.arch or (opened.folder and opened.folder.timms and not given.format):
        return file, None
    return identified(file, given.format)


def weights_of(
    opened: Source, given: Reading, claim: tuple[Contents, Format | None], method: str = "", values: bool = True
) -> Weights:
    """The network in a source, as given by hand, else as its folder says, else as the format of `claimed` knows it.

    values: False leaves all but small tensors of anything but a student unread and unchecked.
    """
    (file, row), folder = claim, opened.folder
    if given.arch:
        beside = folder.pixels() if folder else None
        file = file if values else file.outline()
        read = partial(by_architecture, file, str(given.arch), given.arch_args or {}, given, beside)
        weights = checked(file, read, values=values)
    elif row is None:
        assert folder is not None
        file = file if values else file.outline()
        weights = checked(file, partial(timms, file, folder, given), values=values)
    else:
        vouched = given.format is not None or (bool(method) and method.startswith(row.family))
        weights = convert(replace(file, vouched=vouched), row, values or row is STUDENT)
        if UNKNOWN in weights.origin and not given.branch:
            must_be_alone(opened.file, file, weights)
        if folder and row is not STUDENT:
            weights = of_transformers(weights, folder)
            weights = replace(weights, preprocessing=folder.pixels() or weights.preprocessing)
    return by_hand(replace(weights, used=in_the_file(opened.file, weights.used)), given)


def identified(file: Contents, name: str | None) -> tuple[Contents, Format]:
    """The format, and the file as it claims it: as it lies, or without wrappers that change no weight.

    A format that claims the file without its wrappers, as the bare file, is preferred to one that only knows the
    network's kind.
    """
    try:
        row = recognise(file, name)
        if name is not None or row.name not in LAST:
            return file, row
    except UnknownCheckpoint as error:
        claims = [row for row in FORMATS.values() if row.matches(file.without_values())]
        if len(claims) > 1:
            raise
        row, trouble = None, error
    for one in unwrapped(file):
        try:
            within = recognise(one.file, name)
        except UnknownCheckpoint:
            continue
        if row is None or within.name not in LAST:
            return one.file, within
    if row is None:
        raise UnknownCheckpoint(f"{trouble}{BY_HAND if name is None else ''}") from trouble
    return file, row


def must_be_alone(whole: Contents, file: Contents, weights: Weights) -> None:
    """UnknownCheckpoint where a network that nobody named lies beside another one, such as its moving average.

    whole: the file as it lies; file: what was read, perhaps without wrappers. A format that knows its lab's places (`teacher`,
    `encoder_q`) has chosen; one level called `state_dict` or `model` is no choice.
    """
    tops = at_a_level(weights.used)
    lying = list(backbones(file))
    others = tops and any(place.path and place.path[0] not in tops for place in lying)
    if others or len(list(backbones(whole))) > len(lying):
        raise UnknownCheckpoint(f"nothing says which of its networks is meant. {places(whole).strip()}")


def in_the_file(file: Contents, used: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The used tensors by their paths in the file as it lies, whatever was taken off on the way."""
    lying: dict[int, list[str]] = {}
    for path, tensor in file.leaves():
        lying.setdefault(id(tensor), []).append(path)
    named = {}
    for name, tensor in used.items():
        paths = lying.get(id(tensor), [name])
        named[next((path for path in paths if path.endswith(name)), paths[0])] = tensor
    return named


def by_hand(weights: Weights, given: Reading) -> Weights:
    """The weights with the pixels that were given by hand."""
    pixels = weights.preprocessing
    if given.size and given.size != pixels.size:
        pixels = pixels.at(given.size)
    pixels = replace(pixels, mean=given.mean or pixels.mean, std=given.std or pixels.std)
    return replace(weights, preprocessing=pixels)


def convert(file: Contents, row: Format, values: bool = True) -> Weights:
    """What the format makes of the file, with its values checked: sums match, every number finite, float32.

    values: False leaves all but small tensors unread and unchecked.
    """
    file = file if values else file.outline()

    def read() -> Weights:
        weights = row.convert(file)
        # A student's record is whole; that of any other decides over its family.
        return weights if row is STUDENT else replace(weights, preprocessing=recorded(file, weights.preprocessing))

    return checked(file, read, row.name, values)


def checked(file: Contents, read: Callable[[], Weights], name: str = "such a network", values: bool = True) -> Weights:
    """The weights that `read` makes of the file, once their values are read and found whole and finite."""
    try:
        weights = read()
        file.fill(weights.used.values())
        file.verify(weights.used.values() if values else ())
        bad = not_finite(weights.used) if values else []
    except UserError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or one_line(error, 120)}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError) as error:
        # A forced format on another kind of file, or shapes that fit no architecture.
        raise BrokenCheckpoint(f"cannot be read as {name}: {one_line(error, 120)}") from error
    if bad:
        raise BrokenCheckpoint(f"{len(bad)} of its tensors hold NaN or infinity: {shown(bad)}")
    return weights


def inspect(
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002
    *,
    feature: str | None = None,
    branch: str | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, object] | None = None,
    mean: object = None,
    std: object = None,
    size: int | None = None,
) -> Report:
    """What a weight file or folder is, or in `problem` why it cannot be a teacher. The arguments are `load_teacher`'s.

    Of a file above 8 GB only the shapes are looked at: no digest, and `load_teacher` may still find damage.

    Raises CheckpointError only where there is nothing to describe: no file, not a checkpoint, damaged or unsafe.
    """
    given = reading(feature, format, branch, arch, arch_args, mean, std, size)
    must_be_an_architecture("arch", given.arch)
    path, name = Path(path), ""
    if not path.exists() and str(path).startswith(("hf-hub:", "hf_hub:")):
        from ssl_kd.checkpoints.hub import fetch_hub

        path, name = fetch_hub(str(path))
    if is_program(path):
        found = describe_program(path)
        return replace(found, problem=SAYS_ALL) if given.by_hand else found
    opened = source(path, name)
    file = opened.file
    seen = tuple(path for path, _ in file.leaves())
    report: Callable[..., Report] = partial(Report, path=str(path), container=file.container, bytes=opened.bytes)
    row, values = None, opened.bytes <= LARGE
    try:
        claim = claimed(opened, given)
        row = claim[1]
        values = values or row is STUDENT
        weights = weights_of(opened, given, claim, values=values)
        blueprint(weights)
    except UserError as error:
        about = {"format": row.name, "family": row.family, "wrote": row.wrote} if row else {}
        return report(**about, dropped=seen, problem=str(error))
    about = {"format": row.name, "family": row.family, "wrote": row.wrote} if row else {}
    return report(
        **about,
        origin=weights.origin,
        branch=weights.branch,
        arch=weights.arch,
        arch_args=weights.arch_args,
        feature=weights.feature,
        dim=weights.dim,
        preprocessing=weights.preprocessing,
        parameters=sum(t.numel() for n, t in weights.state.items() if not n.endswith(NOT_PARAMETERS)),
        used=tuple(weights.used),
        expected=tuple(weights.state),
        dropped=tuple(name for name in seen if name not in weights.used),
        digest=digest_of(weights.arch, weights.arch_args, weights.state) if values else None,
        card=card(file) if row is STUDENT else {},
        spaces={name: str(head.space) for name, head in weights.heads.items()},
        licence=opened.licence() or UNSTATED,
    )
