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
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kd.checkpoints.formats.student import header as student_header
from ssl_kd.checkpoints.formats.weights import shown
from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.errors import UserError, one_line, one_of, shown_name
from ssl_kd.exporters.card import (
    BOUND,
    NORMALISED,
    PLAIN,
    Exported,
    Target,
    card_of,
    card_path,
    companion_of,
    companion_part,
    description,
    notes_of,
    require_our_companion,
    require_ours,
)
from ssl_kd.exporters.constants import fixed_positions
from ssl_kd.exporters.equivalents import Twin, timm_twin, torchvision_twin
from ssl_kd.exporters.figures import evaluated, watched
from ssl_kd.exporters.judge import Ask, Judge, Verdict
from ssl_kd.exporters.pictures import PICTURES, measured_on
from ssl_kd.exporters.programs import (
    WEIGHTS,
    Pixels,
    example,
    halve_onnx,
    onnx_lines,
    openvino_int8_lines,
    openvino_lines,
    reload_onnx,
    reload_openvino,
    shrink_onnx,
    shrink_openvino,
    write_onnx,
    write_openvino,
)
from ssl_kd.models.encoder import Encoder, frozen, learned_at, not_finite
from ssl_kd.registry import Registry
from ssl_kd.runtime.files import atomic_text, part_of, put_in_place, sweep
from ssl_kd.runtime.timing import in_turns, machine


def export(
    student: Encoder | str | os.PathLike[str],
    to: str | Sequence[str],
    out: str | os.PathLike[str],
    images: Tensor | str | os.PathLike[str] | None = None,
    feature: str | None = None,
    format: str | None = None,  # noqa: A002
    teacher: Encoder | str | os.PathLike[str] | None = None,
    within: float = 2.0,
    keep: float | None = None,
    figures: str | os.PathLike[str] | None = None,
    **by_hand: object,
) -> list[Exported]:
    """Write `student` in one or several formats (keys of TARGETS), each measured against the Encoder.

    student: an Encoder, a checkpoint file or a name; `feature`, `format` and those by_hand (branch, arch, arch_args, mean, std,
    size) are `load_teacher`'s. out: the file;
    a folder where there are several formats, or where it is one already. images: what to measure on, (B, 3, S, S) in
    [0, 1] with B at least 2, or a folder or zip of pictures; None: noise with the spectrum of photographs.
    For int8 and float16 they must be photos, at least 60 (see `exporters.judge`). teacher: an Encoder, or a file or a name, which is
    asked at the size that the student learned it at; such a copy may lose `within` points of its neighbours; keep: percent of
    the float student's neighbours that must stay.
    figures: of `hub`, the out folder of an `ssl-kd eval` whose figures of these very weights go into the card.
    UserError, and no file at all, where `out` is the student's own file or another that is no export of ours, or ends as the
    files of another format do, or a format cannot hold the network or differs by more than BOUND.
    """
    formats = [one_of("to", name, [*TARGETS, HUB]) for name in ([to] if isinstance(to, str) else to)]
    if not formats or len(set(formats)) != len(formats):
        raise UserError(
            f"to: expected formats among {', '.join(TARGETS)}, each once; got {', '.join(formats) or 'none'}"
        )
    if len(formats) == 1 and not Path(out).is_dir():
        _spare(student, [Path(out)])
        _require_ending(formats[0], Path(out))
    read: Callable[..., Encoder] = load_teacher
    encoder = student if isinstance(student, Encoder) else read(student, feature, format, **by_hand)
    notes = notes_of(student)
    encoder = frozen(copy.deepcopy(encoder).cpu().to(memory_format=torch.contiguous_format))
    if bad := not_finite(encoder.backbone.state_dict()):
        raise UserError(f"export: {len(bad)} tensors hold NaN or infinity: {shown(bad)}")
    if HUB in formats:
        return [_hub(encoder, formats, Path(out), notes, images, _figures(student, encoder, figures))]
    if figures is not None:
        raise UserError(f"figures: only the card of --to {HUB} holds them")
    if encoder.head(encoder.feature) is not None and (
        alone := [one for one in formats if TARGETS[one].default_feature]
    ):
        raise UserError(
            f"feature: {', '.join(alone)} holds the network alone, without the head that leads to {encoder.feature}; "
            f"export to onnx, torchscript or safetensors"
        )
    lines = {name: TARGETS[name].possible(encoder) for name in formats}
    size = encoder.preprocessing.size
    judge = _judge(encoder, formats, images, teacher, within, keep)
    images = measured_on(images, encoder) if judge is None else judge.proof.photos[: 4 * PICTURES].float() / 255
    if images.ndim != 4 or len(images) < 2 or images.shape[1:] != (3, size, size):
        raise UserError(f"images: expected at least 2 of (3, {size}, {size}), got {tuple(images.shape)}")
    out = Path(out)
    folder = out if len(formats) > 1 or out.is_dir() else out.parent
    paths = [folder / TARGETS[name].name if folder == out else out for name in formats]
    _spare(student, paths)
    for name, path in zip(formats, paths, strict=True):
        require_ours(path)
        require_our_companion(path, TARGETS[name])
    parts = [part_of(path, hidden=True) for path in paths]
    made: list[Exported] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, [name for path in paths for name in (path.name, card_path(path).name)])
        for name, part, path in zip(formats, parts, paths, strict=True):
            done = _measured(name, encoder, part, path, lines[name], notes, images)
            made.append(done if judge is None or not TARGETS[name].shrink else _shrunk(done, encoder, part, judge))
        for part, done in zip(parts, made, strict=True):
            target = TARGETS[done.format]
            # The card first: it holds the digests of the new file and the old one, so it fits whenever we are killed.
            atomic_text(done.card, card_of(done, target, encoder, lines[done.format], notes, part))
            if target.companion:
                put_in_place(companion_part(part, target), companion_of(done.path, target))
            put_in_place(part, done.path)
    except OSError as error:
        raise UserError(f"out: {folder} could not be written ({error.strerror or error}); choose another") from error
    finally:
        for name, part in zip(formats, parts, strict=True):
            for file in {part, companion_part(part, TARGETS[name])}:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
    return made


def _require_ending(name: str, out: Path) -> None:
    """UserError where a file is to end as those of another format do: whoever reads it would take it for one."""
    theirs = [other for other, target in TARGETS.built_in.items() if out.suffix.lower() == Path(target.name).suffix]
    if theirs and name not in theirs:
        own = "a folder" if name == HUB else f"a file that ends in {Path(TARGETS[name].name).suffix}"
        raise UserError(
            f"out: {out.name} ends as a file of {' or '.join(theirs)} does, and {name} writes {own}; choose another name"
        )


def _hub(
    encoder: Encoder,
    formats: Sequence[str],
    out: Path,
    notes: Mapping[str, object],
    images: Tensor | str | os.PathLike[str] | None,
    figures: str,
) -> Exported:
    """A folder for timm and the hub, which stands alone."""
    from ssl_kd.exporters.hub import write_hub

    if len(formats) > 1:
        raise UserError(f"to: {HUB} is a folder of its own; export it without {', '.join(set(formats) - {HUB})}")
    relative = write_hub(encoder, out, notes, measured_on(images, encoder), BOUND, figures)
    return Exported(HUB, out, out / "README.md", relative, relative, 1.0)


def _figures(student: object, encoder: Encoder, folder: str | os.PathLike[str] | None) -> str:
    """What is known of a student, as markdown: by an evaluation, and by its own run."""
    said = (
        []
        if folder is None
        else [f"Measured by `ssl-kd eval` (95 % intervals):\n\n{evaluated(folder, encoder.digest)}"]
    )
    if seen := watched(student):
        said.append(f"Watched while it was trained, without labels: {shown_name(seen)}")
    return "\n\n".join(said)


def _judge(
    encoder: Encoder,
    formats: Sequence[str],
    images: Tensor | str | os.PathLike[str] | None,
    teacher: Encoder | str | os.PathLike[str] | None,
    within: float,
    keep: float | None,
) -> Judge | None:
    """Who judges smaller copies; None where every format says the same as the Encoder."""
    if not any(TARGETS[name].shrink for name in formats):
        return None
    taught = teacher if isinstance(teacher, Encoder) or teacher is None else load_teacher(teacher)
    if taught is not None and taught is not teacher and (alike := learned_at(encoder, taught)):
        taught.preprocessing = alike
    return Judge(encoder, images, None if taught is None else frozen(taught), within, keep)


def _shrunk(done: Exported, encoder: Encoder, part: Path, judge: Judge) -> Exported:
    """Make a file that says the same into a smaller one, and judge that one as it was written."""
    target = TARGETS[done.format]
    assert target.shrink is not None
    plain, before = target.reopen(encoder, part), _size(part, target)
    facts = target.shrink(part, judge)
    small = target.reopen(encoder, part)
    one = judge.proof.photos[:1].float() / 255
    timings = in_turns({"float": lambda: plain(one), done.format: lambda: small(one)})
    verdict: Verdict = judge.verdict(
        small,
        smaller=_size(part, target) / before,
        timings=timings,
        machine=machine(),
        threads=torch.get_num_threads(),
        **facts,
    )
    photos = judge.proof.photos[: 4 * PICTURES]
    said, own = small(photos.float() / 255).double(), judge.proof.student[: len(photos)].double()
    largest = float((said - own).abs().max())
    return replace(
        done,
        difference=largest,
        relative=largest / max(float(own.abs().max()), 1e-30),
        cosine=float(F.cosine_similarity(said, own, dim=1, eps=1e-300).min()),
        verdict=verdict,
    )


def _size(part: Path, target: Target) -> int:
    return sum(file.stat().st_size for file in {part, companion_part(part, target)})


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
    notes: Mapping[str, object],
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


def _write_state(encoder: Encoder, path: Path, card: Mapping[str, object]) -> None:
    from safetensors.torch import save

    state = {name: tensor.clone().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    notes = card.get("card")  # ours as well: load_encoder must not have to guess the pixels of a plain state dict
    ours = student_header(encoder, notes if isinstance(notes, Mapping) else {}, {})
    # Written by Python, whose errors say that a disk is full; likewise below.
    path.write_bytes(save(state, metadata=ours | {"card": json.dumps(card)}))


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


def _write_student(encoder: Encoder, path: Path, card: Mapping[str, object]) -> None:
    write: Callable[..., object] = save_student
    write(encoder, path, **cast(Mapping[str, object], card["card"]))


def _reload_student(encoder: Encoder, path: Path) -> Ask:
    again = load_teacher(path)
    return lambda images: again(images).embedding


# ------------------------------------------------------------------------------------------ TorchScript


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


def _write_script(encoder: Encoder, path: Path, card: Mapping[str, object]) -> None:
    with _quiet_torchscript(), torch.no_grad(), fixed_positions(encoder):
        # check_trace runs it once more on the same pictures; ours are others, in other numbers.
        traced = torch.jit.trace(Pixels(encoder).eval(), example(encoder), check_trace=False)  # type: ignore[no-untyped-call]
        program = BytesIO()
        torch.jit.save(traced, program, _extra_files={"card.json": json.dumps(card)})
    path.write_bytes(program.getvalue())


def _reload_script(encoder: Encoder, path: Path) -> Ask:
    with _quiet_torchscript():
        # The one place that runs a file's code: it was written a moment ago, by `_write_script`.
        program: Ask = torch.jit.load(BytesIO(path.read_bytes()))  # type: ignore[no-untyped-call]
        return program


HUB = "hub"  # a folder, not a file: see exporters.hub
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
        "onnx": Target("model.onnx", "onnxruntime", PLAIN, onnx_lines, write_onnx, reload_onnx),
        "onnx-fp16": Target(
            "model.fp16.onnx", "onnxruntime", PLAIN, onnx_lines, write_onnx, reload_onnx, shrink=halve_onnx
        ),
        "onnx-int8": Target(
            "model.int8.onnx", "onnxruntime", PLAIN, onnx_lines, write_onnx, reload_onnx, shrink=shrink_onnx
        ),
        "openvino": Target(
            "model.xml", "openvino", PLAIN, openvino_lines, write_openvino, reload_openvino, companion=WEIGHTS
        ),
        "openvino-int8": Target(
            "model.int8.xml",
            "openvino",
            PLAIN,
            openvino_int8_lines,
            write_openvino,
            reload_openvino,
            companion=WEIGHTS,
            shrink=shrink_openvino,
        ),
    },
    group="ssl_kd.exporters",
    kind=Target,
)
