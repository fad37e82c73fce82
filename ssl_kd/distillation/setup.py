"""From a config to the parts of a run, all tried out on two made-up images before anything is written.

The dry pass finds how wide embeddings, tokens and tapped layers are, and that the networks give what the objective reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ssl_kd.data.augment import SCHEMES, Transform
from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.open import open_images
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.subset import hold_out
from ssl_kd.data.view_settings import recipes_of
from ssl_kd.distillation.anchors import give_heads, must_have_enough
from ssl_kd.distillation.arguments import NOTHING, Objects, criterion_of, is_path
from ssl_kd.distillation.auto import rated, settled
from ssl_kd.distillation.between import one_teacher
from ssl_kd.distillation.config import DistillConfig, TeacherSpec, check
from ssl_kd.distillation.members import Asked, Member, Randomness, Tie, asked_students, tied
from ssl_kd.distillation.module import AVERAGE, AnyCriterion, Objective, as_criterion, ask, layers_of, only, with_layer
from ssl_kd.distillation.students import find_student
from ssl_kd.distillation.target_cache import layout_of
from ssl_kd.distillation.teachers import Teacher, TeacherGroup, load_teachers, recorded
from ssl_kd.errors import UserError, must_be, one_line
from ssl_kd.models.encoder import MODULE, Encoder, submodule
from ssl_kd.models.factory import BAD_ARGUMENTS, must_be_an_architecture
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.objectives import Widths, build_objective, taps
from ssl_kd.objectives.boundary import BOUNDARY
from ssl_kd.objectives.masked import MASK, MASKED
from ssl_kd.objectives.multi_teacher import MultiTeacher
from ssl_kd.objectives.presets import CATALOGUE
from ssl_kd.runtime.devices import device_kind
from ssl_kd.types import Features, ViewBatch

if TYPE_CHECKING:
    from PIL import Image

DRY_IMAGES = 2
OF_SEVERAL = ("students", "between")  # settings that a run with a single student does not have
Layers = tuple[tuple[str, ...], tuple[str, ...]]  # of student and teacher


@dataclass(frozen=True)
class Parts:
    """What a run is made of. `held`: the images held out, preprocessed by `contract`; `mix`: what is done to inputs."""

    teacher_group: TeacherGroup
    members: Mapping[str, Member]  # a single student has the name ""
    loader: ViewLoader
    held: ImageSource | None
    contract: Preprocessing
    mix: str
    settings: dict[str, object]  # what config.yaml keeps
    config: DistillConfig  # what was asked for, with numbers in place of `auto`
    derived: frozenset[str] = frozenset()  # settings that were `auto` and are not any more
    tie: Tie | None = None  # what is between the students

    @property
    def student(self) -> Encoder:
        """The first, and often the only, student."""
        return next(iter(self.members.values())).student

    @property
    def objective(self) -> Objective:
        """That student's objective."""
        return next(iter(self.members.values())).objective


def prepare(
    config: DistillConfig, teacher: object, student: object, images: object, objects: Objects = NOTHING
) -> Parts:
    """Load, build and try out everything. UserError for whatever cannot work; nothing is written.

    config and objects: as `merge` makes them of these very arguments.
    """
    check(config)
    asked = asked_students(config, objects)
    _names_must_be_known(config, asked, student, objects)
    torch.manual_seed(config.seed)
    images = open_images(
        config.images if images is None or is_path(images) else images, config.max_unreadable, config.verify
    )
    must_be("images", config.images_digest, config.images, images.digest)
    trained_on, held = hold_out(images, config.health_images) if config.health_every else (images, None)
    before, config = config, settled(config, len(trained_on))
    teachers = load_teachers(config, teacher if isinstance(teacher, nn.Module) else None)
    contract = _contract(config, teachers)
    loaded, several = torch.get_rng_state(), "" not in asked
    streams = {
        name: Randomness.begun(one.config.seed, config.seed, loaded) if several else Randomness()
        for name, one in asked.items()
    }
    found = {}
    for name, one in asked.items():
        with streams[name].own(), _named(name):
            found[name] = find_student(one.config, one.objects.student or student, contract)
    config = rated(config, {name: network for name, (network, _) in found.items()})
    derived = frozenset(f.name for f in fields(config) if getattr(before, f.name) != getattr(config, f.name))
    asked = asked_students(config, objects)
    lines = [line for one in asked.values() for line in one.lines.values()]
    recipes = objects.views or recipes_of(_views(config, lines))
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
    given = {name: _given_objectives(one) for name, one in asked.items()}
    reads = [_layers_read(one.lines, given[name]) for name, one in asked.items()]
    teachers = {name: replace(t, layers=_union(theirs[name][1] for theirs in reads)) for name, t in teachers.items()}
    outputs = {name: _dry_pass(t.encoder, views, t.layers, "teacher", t) for name, t in teachers.items()}
    bench = Bench(teachers, outputs, views, loader, _mix(config, lines))
    members = {}
    for name, one in asked.items():
        with streams[name].own(), _named(name):
            members[name] = _member(name, one, given[name], found[name][0], streams[name], bench)
    tie = tied(config, objects.between, members, teachers, len(recipes))
    if tie is not None:
        _try_out_tie(tie, members, outputs, views)
    teachers = {
        name: replace(t, tokens=any(m.teachers[name].tokens for m in members.values())) for name, t in teachers.items()
    }
    layouts = {
        name: layout_of(output if teachers[name].tokens else replace(output, tokens=None))
        for name, output in outputs.items()
    }
    settings = _settings(config, asked, {name: named for name, (_, named) in found.items()}, teachers)
    settings["images_digest"] = images.digest
    return Parts(
        TeacherGroup(teachers, layouts, loader),
        members,
        loader,
        held,
        contract,
        bench.mix,
        settings,
        config,
        derived,
        tie,
    )


@contextmanager
def _named(student: str) -> Iterator[None]:
    """Say of which of several students an error inside is."""
    try:
        yield
    except UserError as error:
        if not student:
            raise
        raise UserError(f"students: {student}: {error}") from error


@dataclass(frozen=True)
class Bench:
    """What every student is tried out on: the teachers and what they say of made-up views."""

    teachers: Mapping[str, Teacher]
    outputs: Mapping[str, Features]
    views: ViewBatch
    loader: ViewLoader
    mix: str


def _member(
    name: str, asked: Asked, given: Mapping[str, object], student: Encoder, randomness: Randomness, bench: Bench
) -> Member:
    """One student with its objective, tried out on made-up images."""
    reads = _layers_read(asked.lines, given)
    seen = _dry_pass(student, bench.views, _union(ours for ours, _ in reads.values()), "student")
    outputs = {key: only(output, True, reads[key][1]) for key, output in bench.outputs.items()}
    objective = _objective(asked.config, asked.lines, given, seen, outputs)
    _must_fit(asked.config, asked.lines.values(), objective, bench.loader, bench.mix)
    must_have_enough(objective, len(bench.loader.images))
    give_heads(objective, {key: replace(t, line=asked.lines[key]) for key, t in bench.teachers.items()})
    _try_out(objective, seen, outputs, bench.views)
    parts = objective.parts if isinstance(objective, MultiTeacher) else {"": objective}
    teachers = {
        key: replace(t, line=asked.lines[key], layers=reads[key][1], tokens=bool(parts[key].reads_tokens))
        for key, t in bench.teachers.items()
    }
    return Member(name, asked.spec, asked.config, teachers, student, objective, randomness)


def _settings(
    config: DistillConfig,
    asked: Mapping[str, Asked],
    named: Mapping[str, Mapping[str, object]],
    teachers: Mapping[str, Teacher],
) -> dict[str, object]:
    """What config.yaml keeps. A run with a single student does not speak of several."""
    # Overwriting is for today, not a setting: whoever repeats the run elsewhere must not wipe what lies there.
    settings = asdict(replace(config, teachers={}, students="", overwrite=False)) | recorded(teachers)
    if "" in asked:
        return {key: value for key, value in settings.items() if key not in OF_SEVERAL} | dict(named[""])
    return settings | {"students": {name: one.spec.recorded(named[name]) for name, one in asked.items()}}


def _contract(config: DistillConfig, teachers: Mapping[str, Teacher]) -> Preprocessing:
    """How the student will be shown images: as the teacher that wants the largest."""
    largest = max(teachers.values(), key=lambda teacher: teacher.size)
    contract = largest.encoder.preprocessing
    if largest.size != contract.size or config.size or config.crop_ratio:
        contract = contract.at(config.size or largest.size, config.crop_ratio or None)
    return contract


def _names_must_be_known(config: DistillConfig, asked: Mapping[str, Asked], student: object, objects: Objects) -> None:
    """UserError for an architecture, an objective or a scheme of views that nobody knows, before anything is read."""
    for name, one in asked.items():
        given = one.objects.student or student
        by_name = not (name or config.student_weights or config.student.startswith(MODULE))
        if by_name and not isinstance(given, nn.Module) and not callable(given):
            must_be_an_architecture("student", config.student)
        for teacher, line in one.lines.items():
            where = f"teachers: {teacher}: " if teacher else ""
            must_be_an_architecture(f"{where}arch" if where else "teacher_arch", line.arch)
            if teacher not in one.objects.objectives and "" not in one.objects.objectives:
                taps(line.objective)
    if objects.views is None:
        recipes_of(_views(config, [line for one in asked.values() for line in one.lines.values()]))


def _views(config: DistillConfig, lines: Iterable[TeacherSpec]) -> str | list[dict[str, object]]:
    """What was asked for, else the scheme with the most views among those the objectives were published with."""
    if config.views != "":
        return config.views
    objectives = [line.objective for line in lines]
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
    if picture is None:
        return
    for recipe in functions:
        _try_function(recipe, picture, loader.size)


def _try_function(recipe: Transform, picture: Image.Image, size: int) -> None:
    try:
        recipe.apply(picture, size)
    except UserError:
        raise
    except Exception as error:  # whatever anybody's function raises
        raise UserError(
            f"views: {recipe.name} fails on a picture: {type(error).__name__}: {one_line(error, 160)}"
        ) from error


def _mix(config: DistillConfig, lines: Iterable[TeacherSpec]) -> str:
    """What was asked for, else what an objective was published with."""
    if config.mix:
        return config.mix
    objectives = [line.objective for line in lines]
    return next(
        (mix for o in objectives if isinstance(o, str) and o in CATALOGUE and (mix := CATALOGUE[o].mix) != "none"),
        "none",
    )


def _must_fit(
    config: DistillConfig, lines: Iterable[TeacherSpec], objective: Objective, loader: ViewLoader, mix: str
) -> None:
    """UserError where settings exclude each other, or one would be passed over in silence."""
    if len(loader.recipes) < objective.min_views:
        raise UserError(
            f"views: this objective compares views of an image and needs at least {objective.min_views}, but "
            f"{_views(config, lines)!r} gives {len(loader.recipes)}; use multi or rot4"
        )
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


def _given_objectives(asked: Asked) -> dict[str, object]:
    """The objects that teachers' objectives are, their own or the one of all; None where a preset or terms are named."""
    objects, of_all = asked.objects.objectives, asked.config.objective
    return {
        name: objects.get(name, objects.get("") if line.objective == of_all else None)
        for name, line in asked.lines.items()
    }


def _layers_read(lines: Mapping[str, TeacherSpec], given: Mapping[str, object]) -> dict[str, Layers]:
    """Which layers of student and teacher each teacher's objective reads."""
    return {
        name: taps(line.objective) if given[name] is None else layers_of(given[name]) for name, line in lines.items()
    }


def _union(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for some in names for name in some))


def _objective(
    config: DistillConfig,
    lines: Mapping[str, TeacherSpec],
    given: Mapping[str, object],
    seen: Features,
    teacher_outputs: Mapping[str, Features],
) -> Objective:
    student, widths = Widths.of(seen), {name: Widths.of(output) for name, output in teacher_outputs.items()}

    def one(name: str) -> Objective:
        spec = lines[name].objective
        if given[name] is None:
            return build_objective(spec, student, widths[name])
        return as_criterion(criterion_of(given[name], str(spec), student.embedding, widths[name].embedding))

    if "" in lines:
        return one("")
    weights = {name: line.weight for name, line in lines.items()}
    parts = {name: one(name) for name in lines}
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
            attention: object = submodule(backbone, parent)
            if hasattr(attention, "fused_attn"):
                attention.fused_attn = False


@torch.no_grad()
def _try_out_tie(tie: Tie, members: Mapping[str, Member], outputs: Mapping[str, Features], views: ViewBatch) -> None:
    """Compute the terms between students once, in eval mode."""
    seen = {name: _dry_pass(member.student, views, (), "student") for name, member in members.items()}
    try:
        with tie.randomness.own():
            tie.terms.eval()(seen, one_teacher(outputs), views)
    except BAD_ARGUMENTS as error:
        raise UserError(f"between: it cannot compare these networks: {one_line(error, 200)}") from error
    tie.terms.train()


@torch.no_grad()
def _try_out(objective: Objective, seen: Features, teacher_outputs: Mapping[str, Features], views: ViewBatch) -> None:
    """Compute the objective once, in eval mode, so that what does not fit together is an error now."""
    if objective.student_momentum:
        seen = with_layer(seen, AVERAGE, seen.embedding)
    if objective.masks and seen.tokens is not None:
        mask = torch.ones(seen.tokens.shape[:2])
        seen = with_layer(with_layer(seen, MASKED, seen.tokens), MASK, mask)
    if objective.at_boundary:
        seen = with_layer(seen, BOUNDARY, seen.embedding)
        teacher_outputs = {name: with_layer(t, BOUNDARY, t.embedding) for name, t in teacher_outputs.items()}
    try:
        ask(objective.eval(), seen, teacher_outputs, views)
    except UserError:
        raise
    except BAD_ARGUMENTS as error:
        own = any(isinstance(module, AnyCriterion) for module in objective.modules())
        hint = "; its forward is given Features, whose `embedding` is a tensor (rows, width)" if own else ""
        raise UserError(f"objective: it cannot compare these networks: {one_line(error, 200)}{hint}") from error
    objective.train()
