"""A student (or a teacher) for other people's programs, each file read back by another door and measured before it is kept.

    ssl-kd export runs/x/student.safetensors --to onnx --out student.onnx
    ssl-kd export runs/x/student.safetensors --to timm torchvision onnx --out exported/

A conversion that is nearly right is worse than none: a network fed other pixels still answers. So whatever is written is
loaded again without the Encoder that it came from (timm, torchvision, our loader, TorchScript, onnxruntime), asked about the
same pictures, and thrown away unless it says the same. FILE.json beside it tells what was measured and what to feed it.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.checkpoints.formats.weights import shown
from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.data.open import open_images
from ssl_kd.errors import UserError, one_line, one_of
from ssl_kd.exporters.equivalents import Twin, timm_twin, torchvision_twin
from ssl_kd.models.encoder import Encoder, as_record, frozen, not_finite
from ssl_kd.runtime.files import atomic_text

BOUND = 1e-4  # largest difference allowed, as a share of the largest number that the Encoder says
PICTURES = 6
ONNX_BYTES = 2**31 - 2**24  # of weights: a protobuf message ends at 2 GB, and the graph needs some
Ask = Callable[[Tensor], Tensor]  # images (B, 3, S, S) in [0, 1] -> embeddings (B, D)


@dataclass(frozen=True)
class Exported:
    """One file that was kept, and how far it is from the Encoder on the same pictures."""

    format: str
    path: Path
    card: Path
    difference: float  # largest absolute difference of any number of any embedding
    relative: float  # the same as a share of the largest number
    cosine: float  # smallest over the pictures

    def __str__(self) -> str:
        return (
            f"{self.format:<12}{self.path} ({self.path.stat().st_size / 1e6:,.1f} MB): largest difference "
            f"{self.difference:.2g} ({self.relative:.1g} of the largest number), 1 - cosine {1 - self.cosine:.1g}"
        )


@dataclass(frozen=True)
class Target:
    """A way out: the file's name in a folder, who wants which pixels, how it is written and how it is asked again."""

    name: str
    reader: str  # what it is read back by, for the card
    pixels: str  # what the file's network is fed
    possible: Callable[[Encoder], tuple[str, ...]]  # lines to load it; UserError where it cannot be
    write: Callable[[Encoder, Path, Mapping[str, Any]], None]
    reopen: Callable[[Encoder, Path], Ask]
    default_feature: bool = False  # a state dict is read by its library's own forward


def export(
    student: Encoder | str | os.PathLike[str],
    to: str | Sequence[str],
    out: str | os.PathLike[str],
    images: Tensor | str | os.PathLike[str] | None = None,
    feature: str | None = None,
    format: str | None = None,  # noqa: A002
) -> list[Exported]:
    """Write `student` in one or several formats (keys of TARGETS), each measured against the Encoder.

    student: an Encoder, a checkpoint file or a name; `feature` and `format` are those of `load_teacher`. out: the file;
    a folder where there are several formats, or where it is one already. images: what to measure on, (B, 3, S, S) in
    [0, 1] with B at least 2, or a folder or zip of pictures; None: noise with the spectrum of photographs.
    UserError, and no file at all, where `out` is the student's own file, or a format cannot hold the network or differs by more than BOUND.
    """
    formats = [one_of("to", name, TARGETS) for name in ([to] if isinstance(to, str) else to)]
    if not formats or len(set(formats)) != len(formats):
        raise UserError(
            f"to: expected formats among {', '.join(TARGETS)}, each once; got {', '.join(formats) or 'none'}"
        )
    encoder = student if isinstance(student, Encoder) else load_teacher(student, feature, format)
    notes = _notes(student)
    encoder = frozen(copy.deepcopy(encoder).cpu().to(memory_format=torch.contiguous_format))
    if bad := not_finite(encoder.backbone.state_dict()):
        raise UserError(f"export: {len(bad)} tensors hold NaN or infinity: {shown(bad)}")
    lines = {name: TARGETS[name].possible(encoder) for name in formats}
    size = encoder.preprocessing.size
    images = _seen(images, encoder)
    if images.ndim != 4 or len(images) < 2 or images.shape[1:] != (3, size, size):
        raise UserError(f"images: expected at least 2 of (3, {size}, {size}), got {tuple(images.shape)}")
    out = Path(out)
    folder = out if len(formats) > 1 or out.is_dir() else out.parent
    paths = [folder / TARGETS[name].name if folder == out else out for name in formats]
    _spare(student, paths)
    made: list[Exported] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            parts = [stack.enter_context(_part(path)) for path in paths]
            for name, part, path in zip(formats, parts, paths, strict=True):
                made.append(_measured(name, encoder, part, path, lines[name], notes, images))
            for part, path, done in zip(parts, paths, made, strict=True):
                os.replace(part, path)
                atomic_text(done.card, _card(done, encoder, lines[done.format], notes))
    except OSError as error:
        raise UserError(f"out: {folder} could not be written ({error.strerror or error}); choose another") from error
    return made


def _spare(student: Encoder | str | os.PathLike[str], paths: Sequence[Path]) -> None:
    """UserError where a file to write is the one that is exported, by whatever name: a student can be made only once."""
    source = None if isinstance(student, Encoder) else Path(student)
    for path in paths:
        if source and source.exists() and path.exists() and path.samefile(source):
            raise UserError(f"out: {path} is the student that is exported and would be replaced; choose another name")


class _part:  # noqa: N801  a context manager reads as a verb
    """A name beside `path` to write to; whatever is there at the end is removed."""

    def __init__(self, path: Path):
        self.path = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


def _measured(
    name: str,
    encoder: Encoder,
    part: Path,
    path: Path,
    lines: tuple[str, ...],
    notes: Mapping[str, Any],
    images: Tensor,
) -> Exported:
    """Write one format to `part`, ask it again and compare."""
    target = TARGETS[name]
    target.write(encoder, part, description(encoder, target) | {"load": lines, "card": notes})
    ask = target.reopen(encoder, part)
    feature = encoder.network.default if target.default_feature else encoder.feature
    with torch.no_grad():
        said = encoder.embeddings(images, (feature,))[feature].double()
        # One picture, then all others: a file that knows only the batch it was traced with would be found out.
        again = torch.cat([ask(images[:1]), ask(images[1:])]).double()
    if again.shape != said.shape:
        raise UserError(f"{name}: not kept: it gives {tuple(again.shape)} where the encoder gives {tuple(said.shape)}")
    difference = float((again - said).abs().max())
    relative = difference / max(float(said.abs().max()), 1e-30)
    cosine = float(F.cosine_similarity(again, said, dim=1, eps=1e-300).min())
    if not relative <= BOUND:
        raise UserError(
            f"{name}: not kept: it differs from the encoder by {difference:.2g}, {relative:.1g} of the largest number "
            f"(bound {BOUND:g}), cosine {cosine:.6f}; export to safetensors, which holds the encoder as it is"
        )
    return Exported(name, path, path.with_name(f"{path.name}.json"), difference, relative, cosine)


def _seen(images: Tensor | str | os.PathLike[str] | None, encoder: Encoder) -> Tensor:
    """What is measured on: (B, 3, S, S) in [0, 1]."""
    if images is None:
        return pictures(PICTURES, encoder.preprocessing.size)
    if isinstance(images, Tensor):
        return images
    opened = open_images(images)
    read = [opened.prepared(i, encoder.preprocessing) for i in range(min(len(opened), 4 * PICTURES))]
    seen = [pixels for pixels in read if pixels is not None]
    if len(seen) < 2:
        raise UserError(f"images: expected at least 2 readable pictures in {images}, got {len(seen)}")
    return torch.stack(seen).float() / 255


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Noise with the spectrum of photographs (amplitude 1 / frequency), colours correlated: (count, 3, S, S) in [0, 1]."""
    drawn = torch.Generator().manual_seed(seed)
    across, down = torch.fft.rfftfreq(size)[None], torch.fft.fftfreq(size)[:, None]
    amplitude = (across.square() + down.square()).sqrt().clamp_min(1 / size).reciprocal()
    grey = torch.randn(count, 1, size, size, generator=drawn)
    noise = grey + 0.5 * torch.randn(count, 3, size, size, generator=drawn)
    x = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(size, size))
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    return (0.45 + 0.25 * x).clamp(0, 1)


def description(encoder: Encoder, target: Target) -> dict[str, Any]:
    """What somebody who has only the file must know; goes into the file where it has a place, and into the card."""
    feature = encoder.network.default if target.default_feature else encoder.feature
    eyes, then = encoder.preprocessing, ", subtract mean, divide by std"
    return as_record(encoder) | {
        "feature": feature,
        "dim": encoder.width(feature),
        "digest": encoder.digest,
        "input": f"(B, 3, {eyes.size}, {eyes.size}) float32 RGB, {target.pixels}",
        "output": f"(B, {encoder.width(feature)}) float32",
        "preprocessing": asdict(eyes)
        | {
            "order": "resize the shorter side, crop the centre, divide by 255"
            + (then if target.pixels == NORMALISED else "")
        },
    }


def _card(done: Exported, encoder: Encoder, lines: tuple[str, ...], notes: Mapping[str, Any]) -> str:
    target = TARGETS[done.format]
    measured = {
        "against": "the Encoder, in float32 on a CPU",
        "read_back_by": target.reader,
        "max_absolute_difference": done.difference,
        "as_share_of_largest": done.relative,
        "bound": BOUND,
        "min_cosine": done.cosine,
    }
    load = [line.replace("FILE", repr(done.path.name)) for line in lines]
    card = {"format": done.format, "file": done.path.name} | description(encoder, target)
    return json.dumps(card | {"measured": measured, "load": load, "card": dict(notes)}, indent=1)


def _notes(student: Encoder | str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a student's file: its teacher, its objective, its images."""
    if isinstance(student, Encoder) or not Path(student).is_file():
        return {}
    return dict(inspect(student).card)


# ------------------------------------------------------------------------------------------ state dicts


def _state_lines(twin: Twin) -> tuple[str, ...]:
    load = "model.load_state_dict(safetensors.torch.load_file(FILE)); model.eval()"
    return (*twin.lines, "import safetensors.torch", load)


def _write_state(encoder: Encoder, path: Path, card: Mapping[str, Any]) -> None:
    from safetensors.torch import save

    state = {name: tensor.clone().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    # Written by Python, whose errors say that a disk is full; likewise below.
    path.write_bytes(save(state, metadata={"format": "pt", "card": json.dumps(card)}))


def _twin_of(make: Callable[[Encoder], Twin]) -> Callable[[Encoder, Path], Ask]:
    def reopen(encoder: Encoder, path: Path) -> Ask:
        from safetensors.torch import load_file

        model = make(encoder).build()
        try:
            model.load_state_dict(load_file(path), strict=True)
        except RuntimeError as error:
            raise UserError(f"{path.name}: not kept: it does not load strictly: {one_line(error, 160)}") from error
        model.eval()
        mean, std = (torch.tensor(c).view(3, 1, 1) for c in (encoder.preprocessing.mean, encoder.preprocessing.std))
        return lambda images: model((images - mean) / std).flatten(1)

    return reopen


def _student_lines(encoder: Encoder) -> tuple[str, ...]:
    if encoder.is_module:
        raise UserError("safetensors: a module from Python has no name to rebuild it by; export to torchscript or onnx")
    return ("import ssl_kd", "model = ssl_kd.load_teacher(FILE)")


def _write_student(encoder: Encoder, path: Path, card: Mapping[str, Any]) -> None:
    save_student(encoder, path, **card["card"])


def _reload_student(encoder: Encoder, path: Path) -> Ask:
    again = load_teacher(path)
    return lambda images: again(images).embedding


# ------------------------------------------------------------------------------------------ whole programs


class Pixels(nn.Module):
    """Images in [0, 1] to embeddings: all that a program without ssl_kd needs, mean and std included."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        return self.encoder(images).embedding


def _example(encoder: Encoder) -> Tensor:
    return pictures(2, encoder.preprocessing.size, seed=1)


def _script_lines(encoder: Encoder) -> tuple[str, ...]:
    return ("import torch", "model = torch.jit.load(FILE)")


class _quiet_torchscript(warnings.catch_warnings):  # noqa: N801
    """TorchScript is deprecated in new versions of torch, and remarks that a size was read; both are known here."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", torch.jit.TracerWarning)


def _write_script(encoder: Encoder, path: Path, card: Mapping[str, Any]) -> None:
    with _quiet_torchscript(), torch.no_grad():
        # check_trace runs it once more on the same pictures; ours are others, in other numbers.
        traced = torch.jit.trace(Pixels(encoder).eval(), _example(encoder), check_trace=False)
        program = BytesIO()
        torch.jit.save(traced, program, _extra_files={"card.json": json.dumps(card)})
    path.write_bytes(program.getbuffer())


def _reload_script(encoder: Encoder, path: Path) -> Ask:
    with _quiet_torchscript():
        # The one place that runs a file's code: it was written a moment ago, by `_write_script`.
        return torch.jit.load(BytesIO(path.read_bytes()))  # type: ignore[no-any-return]


def _onnx_lines(encoder: Encoder) -> tuple[str, ...]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise UserError(f"onnx: needs {package}, which is not installed; pip install 'ssl-kd[export]'") from error
    if sum(t.numel() * t.element_size() for t in encoder.backbone.state_dict().values()) > ONNX_BYTES:
        raise UserError(f"onnx: one file holds at most 2 GB and {encoder.arch} is larger; export to torchscript")
    return (
        "import onnxruntime",
        "session = onnxruntime.InferenceSession(FILE)",
        "model = lambda images: session.run(None, {'images': images})[0]",
    )


def _write_onnx(encoder: Encoder, path: Path, card: Mapping[str, Any]) -> None:
    import onnx

    try:
        program = torch.onnx.export(
            Pixels(encoder).eval(),
            (_example(encoder),),
            dynamo=True,
            input_names=["images"],
            output_names=["embedding"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        model = program.model_proto  # type: ignore[union-attr]
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"onnx: torch cannot export {encoder.arch}: {one_line(error, 200)}") from error
    onnx.helper.set_model_props(model, {"card": json.dumps(card)})
    path.write_bytes(model.SerializeToString())


def _reload_onnx(encoder: Encoder, path: Path) -> Ask:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


NORMALISED = "normalised by mean and std"
PLAIN = "in [0, 1]; the file itself normalises"

TARGETS: dict[str, Target] = {
    "timm": Target(
        "timm.safetensors",
        "timm.create_model and a strict load_state_dict",
        NORMALISED,
        lambda encoder: _state_lines(timm_twin(encoder)),
        _write_state,
        _twin_of(timm_twin),
        default_feature=True,
    ),
    "torchvision": Target(
        "torchvision.safetensors",
        "torchvision.models and a strict load_state_dict",
        NORMALISED,
        lambda encoder: _state_lines(torchvision_twin(encoder)),
        _write_state,
        _twin_of(torchvision_twin),
        default_feature=True,
    ),
    "safetensors": Target(
        "student.safetensors", "ssl_kd.load_teacher", PLAIN, _student_lines, _write_student, _reload_student
    ),
    "torchscript": Target(
        "model.torchscript.pt", "torch.jit.load", PLAIN, _script_lines, _write_script, _reload_script
    ),
    "onnx": Target("model.onnx", "onnxruntime", PLAIN, _onnx_lines, _write_onnx, _reload_onnx),
}
