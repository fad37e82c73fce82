"""A state dict of any timm or torchvision network, whose architecture a person or a folder's config.json names.

Loading is as strict as ever: every tensor of the network is in the file, and the file holds nothing else but the
classifier that the network has in its library. What the weights of a ViT show need not be said (`fitted`); what a bare state
dict cannot say, mean and std, has to be given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from ssl_kd.checkpoints.fitted import fitted
from ssl_kd.checkpoints.formats.weights import Contents, State, Weights, shown
from ssl_kd.checkpoints.pixels_record import recorded
from ssl_kd.checkpoints.reading import Reading
from ssl_kd.checkpoints.wrappers import Unwrapped, unwrapped
from ssl_kd.errors import BrokenCheckpoint, UnknownCheckpoint, UserError, one_line
from ssl_kd.models.backbones import Network
from ssl_kd.models.factory import OUR_ARGUMENTS, make, without_numbers
from ssl_kd.models.preprocessing import Preprocessing, timm_pixels

UNSAID = Preprocessing(interpolation="bicubic")


def by_architecture(
    file: Contents,
    arch: str,
    args: Mapping[str, object],
    given: Reading,
    pixels: Preprocessing | None = None,
    origin: str = "",
) -> Weights:
    """The network's own tensors of the file. BrokenCheckpoint unless they are all there and nothing is left over.

    arch: NAME of timm, `torchvision/NAME`, or NAME.TAG, for which timm says the pixels too. pixels: what a record
    beside the file says of them; UserError where nothing does and mean and std are not given.
    """
    arguments = dict(args)
    network = without_numbers(lambda: make(arch, arguments))
    found = best(file, network.backbone.state_dict())
    must_be_the_only(file, network.backbone.state_dict())
    state = found.file.state()
    known = arch
    if (more := fitted(network.backbone, arch, arguments, state)) != (arch, arguments):
        given = replace(given, size=given.size or _side(arguments.get("img_size")))
        arch, arguments = more
        network = without_numbers(lambda: make(arch, arguments))
    wanted = network.backbone.state_dict()
    head = classifier(arch, arguments, wanted)
    kept: State = {name: tensor for name, tensor in state.items() if name in wanted or name not in head}
    lacks = [name for name in wanted if name not in kept and not name.endswith("num_batches_tracked")]
    if lacks:
        raise BrokenCheckpoint(
            f"{known} lacks {len(lacks)} of its {len(wanted)} tensors in the file: {shown(lacks)}; the file has "
            f"{shown(list(state)) or 'none at that place'} (branch names another place)"
        )
    feature = given.feature or network.default
    dropped = [name for name in state if name not in kept]
    wrappers = f", {' and '.join(found.taken_off)} taken off" if found.taken_off else ""
    return Weights(
        arch.partition(".")[0],
        arguments,
        network.width(feature),
        kept,
        _pixels(file, known, network, given, pixels),
        feature,
        origin or f"{known}, named by hand",
        f"the whole file{f' without its classifier ({len(dropped)})' if dropped else ''}{wrappers}",
        kept,
    )


def _side(img_size: object) -> int | None:
    """The side that an argument of timm asks for."""
    side = img_size[0] if isinstance(img_size, list | tuple) and img_size else img_size
    return side if type(side) is int else None


def best(file: Contents, wanted: Mapping[str, Tensor]) -> Unwrapped:
    """The file, or what is within its wrappers: the first that holds the most of the wanted names."""
    return max([Unwrapped(file), *unwrapped(file)], key=lambda candidate: _count(candidate, wanted))


def _count(candidate: Unwrapped, wanted: Mapping[str, Tensor]) -> int:
    """How many of the wanted names it holds."""
    nodes = candidate.file.nodes
    return sum(name in nodes for name in wanted) if isinstance(nodes, Mapping) else 0


def must_be_the_only(file: Contents, wanted: Mapping[str, Tensor]) -> None:
    """UnknownCheckpoint where several levels of a file hold such a network, as weights and their moving average do."""
    nodes = file.nodes if isinstance(file.nodes, Mapping) else {}
    levels = {key: replace(file, nodes=node) for key, node in nodes.items() if isinstance(node, Mapping)}
    full = [key for key, level in levels.items() if 2 * _count(best(level, wanted), wanted) > len(wanted)]
    if len(full) > 1:
        raise UnknownCheckpoint(
            f"holds such a network under {shown(full)}; name one by branch, such as --branch {shown(full[:1])}"
        )


def classifier(arch: str, args: Mapping[str, object], wanted: Mapping[str, Tensor]) -> set[str]:
    """The names that the network's library adds for its classifier."""
    source, _, name = arch.rpartition("/")
    if source == "torchvision":
        from torchvision import models

        get: Callable[..., nn.Module] = models.get_model
        whole = without_numbers(lambda: get(name, weights=None, **args))
    elif source in ("", "timm"):
        import timm

        own = {key: value for key, value in args.items() if key not in OUR_ARGUMENTS}
        plain = {key: tuple(v) if isinstance(v, list) else v for key, v in own.items()}
        create: Callable[..., nn.Module] = timm.create_model
        whole = without_numbers(lambda: create(name, pretrained=False, **plain))
    else:
        return set()
    return set(whole.state_dict()) - set(wanted)


def _pixels(file: Contents, arch: str, network: Network, given: Reading, beside: Preprocessing | None) -> Preprocessing:
    """By hand, else the file's own record, else what lies beside it or what timm says of that tag; else UserError."""
    known = beside or _of_tag(arch)
    base = known or UNSAID.at(given.size or network.size)
    own = recorded(file, base)
    if known is None and own.mean is base.mean and not (given.mean and given.std):
        hint = _hint(arch)
        raise UserError(
            f"mean and std: nothing says which pixels this {arch} was trained on; give both, such as --mean 0.485 0.456 "
            f"0.406 --std 0.229 0.224 0.225 for ImageNet's{hint}"
        )
    return own


def _of_tag(arch: str) -> Preprocessing | None:
    """What timm says of NAME.TAG."""
    source, _, name = arch.rpartition("/")
    if source not in ("", "timm") or "." not in name:
        return None
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    tags = timm.list_pretrained(f"{name.partition('.')[0]}*")
    if name not in tags or config is None:
        raise UserError(f"arch: timm knows no tag {one_line(name)}; it has {', '.join(tags[:6]) or 'none'}")
    plain: Callable[[], Mapping[str, object]] = config.to_dict
    return timm_pixels(plain())


def _hint(arch: str) -> str:
    """The tags of timm whose pixels may be the right ones."""
    source, _, name = arch.rpartition("/")
    if source not in ("", "timm"):
        return ""
    import timm

    tags = [tag for tag in timm.list_pretrained(f"{name}*") if tag.startswith(f"{name}.")]
    return f"; or where the weights are timm's own, name them so: --arch {tags[0]}" if tags else ""
