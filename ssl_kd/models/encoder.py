"""One noun for both networks: an `Encoder` turns pixels into features and carries its own preprocessing.

Images travel as (B, 3, H, W) RGB in [0, 1]. What a network was trained on (mean and std, size, resize, crop and
interpolation) is a `Preprocessing` inside the Encoder, so that a SimCLR teacher (plain [0, 1]) and a ResNet student
(ImageNet statistics) can look at the very same tensor. Nobody else normalises.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError, nearest, one_line
from ssl_kd.models.backbones import STAGES, ModuleNet, Network, Reading, stages
from ssl_kd.models.factory import make
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space import Space
from ssl_kd.models.space_head import SpaceHead
from ssl_kd.types import Features

if TYPE_CHECKING:
    pass

DARKEST = -1.0  # interpolation overshoots a little; pixels less their mean, over their deviation, go to -1.7 and beyond
LARGEST = 16  # no pixel in [0, 1] comes near it, and of 0..255 nearly every batch goes beyond
MODULE = "module/"  # before the name of a class from Python, where an architecture would stand


class Encoder(nn.Module):
    """A network, the feature that is read from it and the pixels that it was made for.

    `arch` and `arch_args` rebuild it (see `build`), `origin` says where the weights came from in words, `licence` under
    which licence they are, where somebody said so. The wrapped
    timm, torchvision or other module is `backbone`; its state dict has that library's own names.

    heads: what leads the network's features into other spaces, such as its teacher's, by the name of a feature:
    `encoder.embed(images, space="teacher")`. Such a name may be the encoder's feature (`read_as`).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Network,
        arch: str,
        arch_args: Mapping[str, object] | None = None,
        feature: str | None = None,
        preprocessing: Preprocessing | None = None,
        origin: str = "random weights",
    ):
        super().__init__()
        self.network = network
        self.arch = arch
        self.arch_args = dict(arch_args or {})
        self.feature = feature or network.default
        self.preprocessing = preprocessing or Preprocessing().at(network.size)
        self.origin = origin
        self.licence = ""  # of its weights, in the publisher's words; nothing for weights of one's own
        self.dim = network.width(self.feature)
        # Not in state dicts: they are constants of the preprocessing, which is saved as such.
        self.register_buffer("mean", torch.tensor(self.preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocessing.std).view(1, 3, 1, 1), persistent=False)
        self._digest: tuple[tuple[object, ...], str] | None = None
        self._looked_at = False
        self.heads = nn.ModuleDict()
        self.answers_in: Space | None = None  # of a program that ends in a head: the space that it leads to

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        dim: int,
        preprocessing: Preprocessing | None = None,
        origin: str = "a module from Python",
    ) -> Encoder:
        """Wrap any module that maps normalised pixels to (B, dim), to a map (B, dim, H, W) or to `Features`."""
        return cls(ModuleNet(module, dim), f"{MODULE}{type(module).__name__}", None, "pool", preprocessing, origin)

    @property
    def is_module(self) -> bool:
        """Whether this is a module from Python, which nobody can build again by its architecture's name."""
        return self.arch.startswith(MODULE)

    @property
    def backbone(self) -> nn.Module:
        """The wrapped module, with its library's parameter names."""
        found: nn.Module = self.network.backbone
        return found

    @property
    def parameter_count(self) -> int:
        """Numbers in the network that were or can be learnt, buffers not among them; of a program its weights."""
        return self.network.parameter_count

    def width(self, feature: str) -> int:
        """Numbers per image of any feature of this network, or of a space; UserError if it has no such feature."""
        head = self.head(feature)
        return self.network.width(feature) if head is None else head.space.width

    def head(self, feature: str) -> SpaceHead | None:
        """The head that gives this feature, if one does."""
        found = self.heads[feature] if feature in self.heads else None  # noqa: SIM401 - it has no `get`
        return found if isinstance(found, SpaceHead) else None

    def read_as(self, feature: str) -> Encoder:
        """Read another feature from now on, such as "teacher"; returns itself. UserError where there is no such feature."""
        self.dim, self.feature = self.width(feature), feature
        return self

    @property
    def space(self) -> Space:
        """Whose coordinates the encoder's feature is in: its own, or those that its head leads to."""
        head = self.head(self.feature)
        led = self.answers_in if head is None else head.space
        return led or Space(self.digest, self.feature, self.preprocessing.key(), self.dim, self.arch, self.origin)

    @property
    def led(self) -> bool:
        """Whether the encoder's feature is in another network's space, where a head leads it."""
        return self.answers_in is not None or self.head(self.feature) is not None

    @property
    def heard(self) -> str:
        """The pixels of whose answers the encoder's feature is, as `Preprocessing.key`: its own, or what its head learned from.

        A file that does not say of a head is from an older version: its teacher had the views' size, as the student has.
        """
        head = self.head(self.feature)
        if head is None and self.answers_in is not None:
            return self.answers_in.pixels
        return (head.heard if head else "") or self.preprocessing.key()

    def embed(self, images: Tensor, space: str = "") -> Tensor:
        """Embeddings (B, D) of images (B, 3, H, W) in [0, 1], in the encoder's own space or in another by its name.

        space: "teacher" for a student whose file holds a head to it. UserError where there is none.
        """
        if space and self.head(space) is None:
            known = ", ".join(self.heads) or "none"
            raise UserError(
                f"space: this encoder has no head to {space!r} (it has {known}); `--objective drop_in` "
                f"leaves one in the student's file.{nearest(space, list(self.heads))}"
            )
        return self.embeddings(images, (space or self.feature,))[space or self.feature]

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] (or uint8) to what the network was trained on, in the dtype of its weights."""
        if not isinstance(images, Tensor):
            raise UserError(
                f"images must be a tensor (B, 3, H, W), got {type(images).__name__}; torch.as_tensor makes one of an array"
            )
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise UserError(f"images: expected floats in [0, 1] or uint8, got {images.dtype}")
        elif images.device.type == "cpu" or not self._looked_at:  # elsewhere each look makes the program wait
            _must_be_in_range(images)
            self._looked_at = True
        x = (images - self.mean) / self.std
        weights = next(self.network.parameters(), None)
        return x if weights is None or torch.is_autocast_enabled(x.device.type) else x.to(weights.dtype)

    def forward(self, images: Tensor, layers: Sequence[str] = (), until: str = "") -> Features:
        """Images (B, 3, H, W) in [0, 1] to Features. `layers` names submodules of the backbone to tap (see `submodule`).

        until: one of these, behind which nothing is computed; the embedding is then (B, 1) zeros, and only what was tapped is there.
        """
        taps: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name in layers:
                stack.enter_context(tapped(self.backbone, name, taps))
            if until:
                stack.enter_context(stopping(self.backbone, until))
            try:
                embeddings, tokens = self._read(self.normalise(images), (self.feature,))
            except _Reached:
                embeddings, tokens = {self.feature: images.new_zeros(len(images), 1)}, None
        for name in taps:
            if _STAGE.fullmatch(name) and taps[name].ndim == 4 and getattr(self.network, "channels_last", False):
                taps[name] = taps[name].permute(0, 3, 1, 2)  # a stage is (B, C, H, W), however its network lays it out
        return Features(embeddings[self.feature], tokens, taps)

    def embeddings(self, images: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """Several named features of the same images from one pass: {name: (B, D)}."""
        return self._read(self.normalise(images), tuple(features))[0]

    def _read(self, pixels: Tensor, features: tuple[str, ...]) -> Reading:
        """What the network says, and behind it the heads that were asked for."""
        heads = {name: head for name in features if (head := self.head(name)) is not None}
        if not heads:
            return self._asked(pixels, features)
        plain = dict.fromkeys([*(name for name in features if name not in heads), *(h.source for h in heads.values())])
        found, tokens = self._asked(pixels, tuple(plain))
        led = {name: head(found[head.source].float()) for name, head in heads.items()}
        return {name: led[name] if name in led else found[name] for name in features}, tokens

    def _asked(self, pixels: Tensor, features: tuple[str, ...]) -> Reading:
        """What the network says. UserError where it was made for images of another size and takes no other."""
        try:
            reading: Reading = self.network(pixels, features)
        except (AssertionError, RuntimeError) as error:
            own, side = self.network.size, max(pixels.shape[-2:])
            if side == own or isinstance(error, (UserError, torch.OutOfMemoryError)) or "alloc" in str(error):
                raise
            raise UserError(
                f"{self.arch}: is made for images of {own} px and does not take {side} px ({one_line(error, 100)}); give it "
                f"{own} px, or build it for {side} px where it has an argument for that, such as img_size"
            ) from error
        return reading

    @property
    def digest(self) -> str:
        """SHA-256 of architecture and weights, in hex. Computed when asked for, and again once weights have changed."""
        state = self.backbone.state_dict()
        key = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in state.items())
        if self._digest is None or self._digest[0] != key:
            self._digest = (key, digest_of(self.arch, self.arch_args, state))
        head = self.head(self.feature)  # its numbers decide the feature, too
        return self._digest[1] if head is None else hashlib.sha256((self._digest[1] + head.digest).encode()).hexdigest()

    def extra_repr(self) -> str:
        """What print(encoder) shows in its first line."""
        return f"{self.arch}, feature={self.feature}, dim={self.dim}, origin={self.origin!r}"


_STAGE = re.compile(rf"stage\.[1-{STAGES}]")


def _must_be_in_range(images: Tensor) -> None:
    """UserError for floating-point pixels in 0..255, which would be normalised to nonsense. Not while it is compiled."""
    tracing = torch.jit._trace.is_tracing()  # type: ignore[no-untyped-call]
    if torch.compiler.is_compiling() or tracing or not images.numel():
        return
    images = images.detach()
    least, largest = (float(one) for one in torch.aminmax(images))
    if not math.isfinite(least + largest):
        raise UserError("images: expected pixels in [0, 1], or uint8; some are NaN or infinite")
    if least < DARKEST:
        raise UserError(
            f"images: expected pixels in [0, 1], or uint8; got values down to {least:.4g}: give them as they are, "
            f"mean and std are the encoder's own business"
        )
    if largest > LARGEST or (largest > 1.5 and bool((images == images.round()).all())):  # or bytes of a dark picture
        raise UserError(
            f"images: expected pixels in [0, 1], or uint8; got values up to {largest:.4g}, divide them by 255"
        )


def submodule(backbone: nn.Module, name: str) -> nn.Module:
    """The submodule of that path, where a negative number counts from the end of its list: `blocks.-1.attn`.

    `stage.1` to `stage.4` are where the stages of any network end (see `networks.stages`).
    """
    if _STAGE.fullmatch(name):
        name = stages(backbone)[int(name[-1]) - 1]
    found = backbone
    try:
        for part in name.split("."):
            counted = found[int(part)] if part.startswith("-") and part[1:].isdecimal() else None  # type: ignore[index]
            found = counted if counted is not None else found.get_submodule(part)
    except (AttributeError, IndexError, TypeError):
        known = [path for path, _ in backbone.named_modules() if path]
        raise UserError(f"no layer {name!r} in {type(backbone).__name__}.{nearest(name, known)}") from None
    return found


class tapped:  # noqa: N801  a context manager reads as a verb
    """While open, what the named submodule returns is put into `taps`."""

    def __init__(self, backbone: nn.Module, name: str, taps: dict[str, Tensor]):
        self.name, self.taps = name, taps
        self.module = submodule(backbone, name)

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(lambda _, __, out: self.taps.__setitem__(self.name, out))

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


class _Reached(Exception):
    """The layer behind which nothing is needed has been computed."""


class stopping(tapped):  # noqa: N801
    """While open, a forward pass ends by `_Reached` behind the named submodule."""

    def __init__(self, backbone: nn.Module, name: str):
        super().__init__(backbone, name, {})

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(_stop)


def _stop(*_: object) -> None:
    raise _Reached


def digest_of(arch: str, arch_args: Mapping[str, object], state: Mapping[str, Tensor]) -> str:
    """SHA-256 over architecture, names, dtypes, shapes and values.

    Batch norm's step counters are left out: they do not reach a feature, and old files lack them. Floating numbers
    count as float32, as which they are loaded.
    """
    total = hashlib.sha256(json.dumps([arch, arch_args], sort_keys=True).encode())
    for name in sorted(state):
        if name.rpartition(".")[2] != "num_batches_tracked":
            tensor = state[name].detach().cpu().contiguous()
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            total.update(data)
    return total.hexdigest()


def build(
    arch: str, feature: str | None = None, preprocessing: Preprocessing | None = None, **arch_args: object
) -> Encoder:
    """A network by name with random weights.

    arch: a timm name (`resnet18`, `vit_tiny_patch16_224`, also `timm/...`) or `torchvision/...`. arch_args go to timm
    or torchvision (`img_size`, `patch_size`, `channels`, ...); `small_stem=True` makes a ResNet for 32 px images.
    Preprocessing defaults to ImageNet statistics at the architecture's size. UserError for a name or argument that
    does not exist.
    """
    network = make(arch, arch_args)
    if preprocessing is None:
        size = 32 if arch_args.get("small_stem") else network.size
        preprocessing = Preprocessing(interpolation="bicubic").at(size)
    return Encoder(network, arch, arch_args, feature, preprocessing)


def as_record(encoder: Encoder) -> dict[str, object]:
    """Everything about an Encoder but its weights, ready for JSON."""
    return {
        "arch": encoder.arch,
        "arch_args": encoder.arch_args,
        "feature": encoder.feature,
        "dim": encoder.width(encoder.feature),
        "preprocessing": asdict(encoder.preprocessing),
        "origin": encoder.origin,
    }


def frozen(encoder: Encoder) -> Encoder:
    """The same Encoder in eval mode, with no parameter asking for a gradient."""
    return encoder.eval().requires_grad_(False)


def learned_at(student: Encoder, teacher: Encoder) -> Preprocessing | None:
    """The teacher's pixels as this student of its own learned them; None where they are the teacher's already.

    Also None for the student of another teacher. Size and crop are the student's, the rest is the teacher's.
    """
    own, theirs = student.preprocessing, teacher.preprocessing
    its_own = student.origin.startswith("distilled from ") and teacher.origin in student.origin
    return theirs.at(own.size, own.crop_ratio) if its_own and own.size != theirs.size else None


def not_finite(state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of floating tensors that hold a NaN or an infinity."""
    items = state.items() if isinstance(state, Mapping) else state
    return [name for name, tensor in items if tensor.is_floating_point() and not _finite(tensor)]


def _finite(tensor: Tensor) -> bool:
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # the 8-bit kinds know no sums
    # A sum is finite unless an element is not (or it overflows, which the second look settles); one pass, no mask.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Eval mode inside, every part's own mode again afterwards."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
