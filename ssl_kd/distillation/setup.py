"""From a config to the parts of a run, all tried out on two made-up images before anything is written.

The dry pass finds how wide embeddings, tokens and tapped layers are, and that the networks give what the objective reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_kd.data.augment import SCHEMES, Transform
from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.open import open_images
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.subset import hold_out
from ssl_kd.data.views import recipes_of
from ssl_kd.distillation.arguments import NOTHING, Objects, criterion_of, is_path
from ssl_kd.distillation.config import DistillConfig, check
from ssl_kd.distillation.module import AVERAGE, Objective, as_criterion, ask, layers_of
from ssl_kd.distillation.students import find_student
from ssl_kd.distillation.target_cache import layout_of
from ssl_kd.distillation.teachers import Teacher, TeacherGroup, load_teachers, recorded
from ssl_kd.errors import UserError, must_be, one_line
from ssl_kd.models.encoder import Encoder, submodule
from ssl_kd.models.factory import BAD_ARGUMENTS
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.objectives import Widths, build_objective, taps
from ssl_kd.objectives.multi_teacher import MultiTeacher
from ssl_kd.objectives.presets import CATALOGUE
from ssl_kd.runtime.devices import device_kind
from ssl_kd.types import Features, ViewBatch

DRY_IMAGES = 2


@dataclass(frozen=True)
class Parts:
    """What a run is made of. `held`: the images held out, preprocessed by `contract`; `mix`: what is done to inputs."""

    teacher_group: TeacherGroup
    student: Encoder
    objective: Objective
    loader: ViewLoader
    held: ImageSource | None
    contract: Preprocessing
    mix: str
    settings: dict[str, Any]  # what config.yaml keeps


def prepare(config: DistillConfig, teacher: Any, student: Any, images: Any, objects: Objects = NOTHING) -> Parts:
    """Load, build and try out everything. UserError for whatever cannot work; nothing is written.

    config and objects: as `merge` makes them of these very arguments.
    """
    check(config)
    torch.manual_seed(config.seed)
    images = open_images(config.images if images is None or is_path(images) else images, config.max_unreadable)
    must_be("images", config.images_digest, config.images, images.digest)
    trained_on, held = hold_out(images, config.health_images) if config.health_every else (images, None)
    teachers = load_teachers(config, teacher if isinstance(teacher, nn.Module) else None)
    contract = _contract(config, teachers)
    student, named = find_student(config, objects.student or student, contract)
    recipes = objects.views or recipes_of(_views(config, teachers))
    loader = ViewLoader(
        trained_on,
        recipes,
        contract.size,
        config.batch_size,
        config.seed,
        config.threads,
        config.replay,
        config.accumulate,
        None if config.view_seed < 0 else config.view_seed,
    )
    loader.batches_per_epoch()  # an error where there are too few images
    device_kind(config.accelerator)  # and where there is no such device
    _try_functions(loader)
    views = _dry_views(loader.teacher_views, contract.size)
    given = {name: _given_objective(name, t, config, objects) for name, t in teachers.items()}
    asked = {
        name: taps(t.line.objective) if given[name] is None else layers_of(given[name]) for name, t in teachers.items()
    }
    layers = tuple(dict.fromkeys(layer for ours, _ in asked.values() for layer in ours))
    seen = _dry_pass(student, views, layers, "student")
    teachers = {name: replace(t, layers=asked[name][1]) for name, t in teachers.items()}
    teacher_outputs = {name: _dry_pass(t.encoder, views, t.layers, "teacher", t) for name, t in teachers.items()}
    objective = _objective(config, teachers, given, seen, teacher_outputs)
    if len(recipes) < objective.min_views:
        raise UserError(
            f"views: this objective compares views of an image and needs at least {objective.min_views}, but "
            f"{_views(config, teachers)!r} gives {len(recipes)}; use multi or rot4"
        )
    mix = _mix(config, teachers)
    _must_fit(config, objective, loader, mix)
    _try_out(objective, seen, teacher_outputs, views)
    parts = objective.parts if isinstance(objective, MultiTeacher) else {"": objective}
    teachers = {name: replace(t, tokens=bool(parts[name].reads_tokens)) for name, t in teachers.items()}
    layouts = {
        name: layout_of(output if teachers[name].tokens else replace(output, tokens=None))
        for name, output in teacher_outputs.items()
    }
    # Overwriting is for today, not a setting: whoever repeats the run elsewhere must not wipe what lies there.
    settings = asdict(replace(config, teachers={}, overwrite=False)) | named | recorded(teachers)
    settings["images_digest"] = images.digest
    return Parts(TeacherGroup(teachers, layouts, loader), student, objective, loader, held, contract, mix, settings)


def _contract(config: DistillConfig, teachers: Mapping[str, Teacher]) -> Preprocessing:
    """How the student will be shown images: as the teacher that wants the largest."""
    largest = max(teachers.values(), key=lambda teacher: teacher.size)
    contract = largest.encoder.preprocessing
    if largest.size != contract.size or config.size or config.crop_ratio:
        contract = contract.at(config.size or largest.size, config.crop_ratio or None)
    return contract


def _views(config: DistillConfig, teachers: Mapping[str, Teacher]) -> str | list[dict[str, Any]]:
    """What was asked for, else the scheme with the most views among those the objectives were published with."""
    if config.views != "":
        return config.views
    objectives = [t.line.objective for t in teachers.values()]
    names = [CATALOGUE[o].views if isinstance(o, str) and o in CATALOGUE else "weak" for o in objectives]
    return max(names, key=lambda name: len(SCHEMES[name]))


def _try_functions(loader: ViewLoader) -> None:
    """Have functions that make views tried on the first picture; UserError where one fails or gives something else."""
    functions = [recipe for recipe in loader.recipes if isinstance(recipe, Transform)]
    if not functions:
        return
    if loader.replay:
        raise UserError(
            f"replay: views that a function makes ({functions[0].name}) cannot be made again, so their targets cannot be "
            f"stored; use replay 0, or recipes as views"
        )
    picture = next((p for p in map(loader.images.read, range(len(loader.images))) if p is not None), None)
    for recipe in functions if picture is not None else ():
        _try_function(recipe, picture, loader.size)


def _try_function(recipe: Transform, picture: Any, size: int) -> None:
    try:
        recipe.apply(picture, size)
    except UserError:
        raise
    except Exception as error:  # whatever anybody's function raises
        raise UserError(
            f"views: {recipe.name} fails on a picture: {type(error).__name__}: {one_line(error, 160)}"
        ) from error


def _mix(config: DistillConfig, teachers: Mapping[str, Teacher]) -> str:
    """What was asked for, else what an objective was published with."""
    if config.mix:
        return config.mix
    objectives = [t.line.objective for t in teachers.values()]
    return next(
        (mix for o in objectives if isinstance(o, str) and o in CATALOGUE and (mix := CATALOGUE[o].mix) != "none"),
        "none",
    )


def _must_fit(config: DistillConfig, objective: Objective, loader: ViewLoader, mix: str) -> None:
    """UserError where settings exclude each other, or one would be passed over in silence."""
    if config.targets and not config.replay:
        raise UserError("targets: without replay no outputs are stored or read; give replay 1 or more, or no targets")
    if config.teacher_drop and not isinstance(objective, MultiTeacher):
        raise UserError("teacher_drop: expected several teachers, of which some may sit out; got one; use 0")
    if mix != "none" and config.replay:
        raise UserError(
            f"replay: stored targets are of single images, but {mix} gives the teacher mixed ones; use replay 0, or "
            f"mix none"
        )
    if config.accumulate > 1 and objective.indivisible:
        raise UserError(
            f"accumulate: {', '.join(objective.indivisible)} relates all samples of a batch to each other, which its parts "
            f"cannot; use accumulate 1, or an objective that is a mean over samples such as simreg"
        )
    smallest = len(loader.images) // loader.batches_per_epoch() // config.accumulate
    if smallest < 2 and config.accumulate == 1:
        raise UserError(
            f"batch_size: {len(loader.images)} images in batches of {config.batch_size} leave a batch with {smallest}, and "
            f"a sample is related to others; choose another batch_size"
        )
    if smallest < 2:
        raise UserError(
            f"accumulate: {len(loader.images)} images in {config.accumulate} parts per step leave a part with "
            f"{smallest}; lower accumulate"
        )
    reads_more = objective.reads_tokens or objective.student_layers
    if loader.teacher_views < len(loader.recipes) and reads_more:
        raise UserError(
            "views: small crops have patches and layers of their own, which this objective would compare with those of "
            "large views; use weak, strong or multi, or an objective on embeddings such as default_light"
        )
    if config.compile and objective.student_layers:
        raise UserError(
            "compile: this objective taps layers, which a compiled network does not show; use compile false"
        )


def _given_objective(name: str, teacher: Teacher, config: DistillConfig, objects: Objects) -> Any:
    """The object that a teacher's objective is: its own, or the one of all; None where a preset or terms are named."""
    own = objects.objectives.get(name)
    return own if own is not None or teacher.line.objective != config.objective else objects.objectives.get("")


def _objective(
    config: DistillConfig,
    teachers: Mapping[str, Teacher],
    given: Mapping[str, Any],
    seen: Features,
    teacher_outputs: Mapping[str, Features],
) -> Objective:
    student, widths = Widths.of(seen), {name: Widths.of(output) for name, output in teacher_outputs.items()}

    def one(name: str) -> Objective:
        spec = teachers[name].line.objective
        if given[name] is None:
            return build_objective(spec, student, widths[name])
        return as_criterion(criterion_of(given[name], str(spec), student.embedding, widths[name].embedding))

    if "" in teachers:
        return one("")
    weights = {name: t.line.weight for name, t in teachers.items()}
    parts = {name: one(name) for name in teachers}
    return MultiTeacher(parts, weights, config.teacher_drop)  # type: ignore[arg-type]  # any objective will do


# ------------------------------------------------------------------------------------------------ the dry pass


def _dry_views(count: int, size: int) -> ViewBatch:
    random = torch.Generator().manual_seed(0)
    pixels = tuple(torch.rand(DRY_IMAGES, 3, size, size, generator=random) for _ in range(count))
    return ViewBatch(np.arange(DRY_IMAGES), 0, pixels)


@torch.no_grad()
def _dry_pass(
    encoder: Encoder, views: ViewBatch, layers: Sequence[str], whose: str, teacher: Teacher | None = None
) -> Features:
    """Features of made-up images, on the CPU, without a trace in the network (eval mode)."""
    pixels = torch.cat(views.pixels).to(encoder.mean.device)
    was_training = encoder.training
    try:
        _open_attention(encoder.backbone, layers)
        seen = teacher.embed(pixels) if teacher else encoder.eval()(pixels, layers=layers)
    except UserError as error:
        if not layers:
            raise
        raise UserError(
            f"objective: it reads layers {', '.join(layers)} of the {whose} ({encoder.arch}), but {error} Take another "
            f"network, another objective, or spell the term with {whose}_layers of your own"
        ) from error
    except BAD_ARGUMENTS as error:
        raise UserError(
            f"{whose}: {encoder.arch} with {encoder.arch_args} cannot take views of "
            f"{teacher.size if teacher else pixels.shape[-1]} px: {one_line(error, 160)}"
        ) from error
    finally:
        encoder.train(was_training)
    if seen.embedding.shape != (len(pixels), encoder.dim):
        raise UserError(
            f"{whose}: {encoder.arch} with {encoder.arch_args} gives {tuple(seen.embedding.shape)} where "
            f"{(len(pixels), encoder.dim)} was expected: numbers per image, so leave its pooling on"
        )
    for name in layers:
        if not isinstance(seen.layers.get(name), Tensor):
            raise UserError(f"objective: layer {name!r} of the {whose} ({encoder.arch}) gives no tensor; tap another")
    tokens = None if seen.tokens is None else seen.tokens.cpu()
    return Features(seen.embedding.cpu(), tokens, {name: tap.cpu() for name, tap in seen.layers.items()})


def _open_attention(backbone: nn.Module, layers: Sequence[str]) -> None:
    """Fused attention never makes the probabilities that a tap at `attn_drop` reads: turn it off there."""
    for name in layers:
        parent, _, leaf = name.rpartition(".")
        if leaf == "attn_drop":
            attention: Any = submodule(backbone, parent)
            if hasattr(attention, "fused_attn"):
                attention.fused_attn = False


@torch.no_grad()
def _try_out(objective: Objective, seen: Features, teacher_outputs: Mapping[str, Features], views: ViewBatch) -> None:
    """Compute the objective once, in eval mode, so that what does not fit together is an error now."""
    if objective.student_momentum:
        seen = replace(seen, layers={**seen.layers, AVERAGE: seen.embedding})
    try:
        ask(objective.eval(), seen, teacher_outputs, views)
    except UserError:
        raise
    except BAD_ARGUMENTS as error:
        raise UserError(f"objective: it cannot compare these networks: {one_line(error, 200)}") from error
    objective.train()
