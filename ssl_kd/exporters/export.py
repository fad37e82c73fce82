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
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.checkpoints.formats.weights import shown
from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.errors import UserError, one_line, one_of
from ssl_kd.exporters.card import (
    BOUND,
    NORMALISED,
    PLAIN,
    Ask,
    Exported,
    Target,
    card_of,
    card_path,
    description,
    notes_of,
    require_ours,
)
from ssl_kd.exporters.constants import fixed_positions
from ssl_kd.exporters.equivalents import Twin, timm_twin, torchvision_twin
from ssl_kd.exporters.pictures import measured_on, pictures
from ssl_kd.models.encoder import Encoder, frozen, not_finite
from ssl_kd.registry import Registry
from ssl_kd.runtime.files import atomic_text, part_of, put_in_place, sweep
from ssl_kd.types import Features

ONNX_BYTES = 2**31 - 2**24  # of weights: a protobuf message ends at 2 GB, and the graph needs some


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
    UserError, and no file at all, where `out` is the student's own file or another that is no export of ours, or a format
    cannot hold the network or differs by more than BOUND.
    """
    formats = [one_of("to", name, TARGETS) for name in ([to] if isinstance(to, str) else to)]
    if not formats or len(set(formats)) != len(formats):
        raise UserError(
            f"to: expected formats among {', '.join(TARGETS)}, each once; got {', '.join(formats) or 'none'}"
        )
    encoder = student if isinstance(student, Encoder) else load_teacher(student, feature, format)
    notes = notes_of(student)
    encoder = frozen(copy.deepcopy(encoder).cpu().to(memory_format=torch.contiguous_format))
    if bad := not_finite(encoder.backbone.state_dict()):
        raise UserError(f"export: {len(bad)} tensors hold NaN or infinity: {shown(bad)}")
    lines = {name: TARGETS[name].possible(encoder) for name in formats}
    size = encoder.preprocessing.size
    images = measured_on(images, encoder)
    if images.ndim != 4 or len(images) < 2 or images.shape[1:] != (3, size, size):
        raise UserError(f"images: expected at least 2 of (3, {size}, {size}), got {tuple(images.shape)}")
    out = Path(out)
    folder = out if len(formats) > 1 or out.is_dir() else out.parent
    paths = [folder / TARGETS[name].name if folder == out else out for name in formats]
    _spare(student, paths)
    for path in paths:
        require_ours(path)
    parts = [part_of(path, hidden=True) for path in paths]
    made: list[Exported] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, [name for path in paths for name in (path.name, card_path(path).name)])
        for name, part, path in zip(formats, parts, paths, strict=True):
            made.append(_measured(name, encoder, part, path, lines[name], notes, images))
        for part, done in zip(parts, made, strict=True):
            # The card first: it holds the digests of the new file and the old one, so it fits whenever we are killed.
            atomic_text(done.card, card_of(done, TARGETS[done.format], encoder, lines[done.format], notes, part))
            put_in_place(part, done.path)
    except OSError as error:
        raise UserError(f"out: {folder} could not be written ({error.strerror or error}); choose another") from error
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return made


def _spare(student: Encoder | str | os.PathLike[str], paths: Sequence[Path]) -> None:
    """UserError where a file to write is the one that is exported, by whatever name: a student can be made only once."""
    source = None if isinstance(student, Encoder) else Path(student)
    for path in paths:
        if source and source.exists() and path.exists() and path.samefile(source):
            raise UserError(f"out: {path} is the student that is exported and would be replaced; choose another name")


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
    return Exported(name, path, card_path(path), difference, relative, cosine)


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
        features: Features = self.encoder(images)
        return features.embedding


def _example(encoder: Encoder) -> Tensor:
    return pictures(2, encoder.preprocessing.size, seed=1)


def _script_lines(encoder: Encoder) -> tuple[str, ...]:
    return ("import torch", "model = torch.jit.load(FILE)")


class _quiet_torchscript(warnings.catch_warnings):  # noqa: N801
    """TorchScript is deprecated in new versions of torch, and remarks that a size was read; both are known here."""

    def __enter__(self) -> None:
        super().__enter__()
        from torch.jit._trace import TracerWarning

        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", TracerWarning)


def _write_script(encoder: Encoder, path: Path, card: Mapping[str, Any]) -> None:
    with _quiet_torchscript(), torch.no_grad(), fixed_positions(encoder):
        # check_trace runs it once more on the same pictures; ours are others, in other numbers.
        traced = torch.jit.trace(Pixels(encoder).eval(), _example(encoder), check_trace=False)  # type: ignore[no-untyped-call]
        program = BytesIO()
        torch.jit.save(traced, program, _extra_files={"card.json": json.dumps(card)})
    path.write_bytes(program.getbuffer())


def _reload_script(encoder: Encoder, path: Path) -> Ask:
    with _quiet_torchscript():
        # The one place that runs a file's code: it was written a moment ago, by `_write_script`.
        program: Ask = torch.jit.load(BytesIO(path.read_bytes()))  # type: ignore[no-untyped-call]
        return program


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
        with fixed_positions(encoder):
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


TARGETS: Registry[Target] = Registry(
    "export formats",
    {
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
    },
    group="ssl_kd.exporters",
    kind=Target,
)
