"""The teachers' side of a step: frozen encoders, each with its own preprocessing, run now or read from what was stored.

A single teacher is one of several whose name is empty.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.sources.base import content_key
from ssl_kd.distillation.config import DistillConfig, TeacherSpec, teacher_specs
from ssl_kd.distillation.students import wrapped
from ssl_kd.distillation.target_cache import Layout, TargetStore
from ssl_kd.errors import UserError, must_be
from ssl_kd.models.encoder import Encoder, frozen
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.objectives import MultiTeacher, Progression, WeightedSum
from ssl_kd.runtime.objects import is_record
from ssl_kd.types import Features, ViewBatch

SAMPLE = 256  # images on which the levels of stored patches are fitted
Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder, its line in the config, its input size in pixels, and whether tokens and which layers are read."""

    encoder: Encoder
    line: TeacherSpec
    size: int
    layers: tuple[str, ...] = ()
    tokens: bool = True

    def embed(self, pixels: Tensor, until: str = "") -> Features:
        """Its outputs on views (N, 3, S, S) in [0, 1], brought to its input size; `until`: as of an Encoder."""
        teacher_outputs: Features = self.encoder(at_size(pixels, self.size), layers=self.layers, until=until)
        return teacher_outputs if self.tokens else replace(teacher_outputs, tokens=None)

    @property
    def heard(self) -> str:
        """The pixels that it has in this run, as `Preprocessing.key`: at another size it answers otherwise."""
        own = self.encoder.preprocessing
        return (own if self.size == own.size else own.at(self.size)).key()


def at_size(pixels: Tensor, size: int) -> Tensor:
    """Views resized to a side, antialiased; untouched where they have it."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


def load_teachers(config: DistillConfig, given: nn.Module | None) -> dict[str, Teacher]:
    """Every line's encoder, frozen; `given`, an Encoder or any module, takes the place of the single teacher's file.

    UserError where a line asks for another digest than its file has, as a copied config.yaml may.
    """
    found = {}
    for name, line in teacher_specs(config).items():
        encoder = _encoder(given if given is not None else line.file, line, config.size)
        if line.prune:
            encoder = pruned(encoder, line.prune)
        must_be(f"teachers: {name}" if name else "teacher", line.digest, line.file, encoder.digest)
        size = line.size or config.size or encoder.preprocessing.size
        found[name] = Teacher(frozen(encoder), line, size)
    return found


def _encoder(given: object, line: TeacherSpec, size: int) -> Encoder:
    """An Encoder as it is, a module wrapped (ImageNet's mean and std, the run's size or 224 px), a file loaded."""
    if isinstance(given, Encoder):
        return given
    if isinstance(given, nn.Module):
        return wrapped(given, Preprocessing().at(line.size or size or 224), "teacher")
    if is_record(line.file):
        raise UserError(f"teacher: {line.file} was a module from Python; give it again, as ssl_kd.distill(teacher=...)")
    load: Callable[..., Encoder] = load_teacher
    return load(line.file, **line.by_hand(), size=(line.size or None) if line.arch else None)


def pruned(encoder: Encoder, share: float) -> Encoder:
    """A copy of which that share of the weights is 0: the smallest in all linear and convolutional layers together."""
    from torch.nn.utils import prune

    encoder = copy.deepcopy(encoder).requires_grad_()
    weights = [(part, "weight") for part in encoder.network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=share)
    for part, name in weights:
        prune.remove(part, name)  # type: ignore[no-untyped-call]
    encoder.origin = f"{encoder.origin}, {share:.0%} of its weights pruned"
    return encoder


def recorded(teachers: Mapping[str, Teacher]) -> dict[str, object]:
    """What config.yaml keeps of the teachers: their digests, and every line spelled out."""
    if list(teachers) == [""]:
        return {"teacher_digest": teachers[""].encoder.digest}
    return {"teachers": {name: teacher.line.recorded(teacher.encoder) for name, teacher in teachers.items()}}


def terms_on(objective: nn.Module, teacher: str) -> list[nn.Module]:
    """The terms of an objective that are asked of one teacher; of a criterion from Python, itself."""
    if isinstance(objective, MultiTeacher):
        objective = objective.parts[teacher]
    return list(objective.terms.values()) if isinstance(objective, WeightedSum) else [objective]


def _joined(found: Sequence[Features]) -> Features:
    """Features of several batches as those of one, on the CPU."""
    first = found[0]
    tokens = None if first.tokens is None else torch.cat([f.tokens.cpu() for f in found if f.tokens is not None])
    layers = {name: torch.cat([f.layers[name].cpu() for f in found]) for name in first.layers}
    return Features(torch.cat([f.embedding.cpu() for f in found]), tokens, layers)


class TeacherGroup:
    """All teachers of a run, on its device, and the stored outputs of each on views that come round again."""

    def __init__(self, teachers: Mapping[str, Teacher], layouts: Mapping[str, Layout], loader: ViewLoader):
        self.teachers, self.layouts, self.loader = dict(teachers), layouts, loader
        self.stores: dict[str, TargetStore] = {}
        self.moving: dict[str, list[Progression]] = {}  # of a teacher of which nothing else is asked

    def stop_early(self, *objectives: nn.Module) -> None:
        """Have teachers stop where these objectives read nothing deeper: where all their terms move from layer to layer."""
        for name, teacher in self.teachers.items():
            terms = [term for objective in objectives for term in terms_on(objective, name)]
            moving = [term for term in terms if isinstance(term, Progression)]
            one_ladder = len({term.teacher_layers for term in moving}) == 1
            if one_ladder and len(moving) == len(terms) and not teacher.encoder.is_module:
                self.moving[name] = moving

    def depth(self, name: str) -> str:
        """The layer behind which a teacher may stop in the next step; empty: it runs to its end."""
        targets = [term.deepest for term in self.moving.get(name, ())]
        return max(targets, key=self.moving[name][0].teacher_layers.index) if targets else ""

    def to(self, device: torch.device) -> None:
        """Move every teacher, channels last."""
        for teacher in self.teachers.values():
            teacher.encoder.to(device).to(memory_format=torch.channels_last)

    def open_stores(self, folder: str | Path, precision: str, bits: int, autocast: Autocast) -> None:
        """Keep the outputs on replayed views under a digest of everything that decides them.

        bits: 16, or 4 for patches and layers, whose levels are fitted on evenly spaced images if nobody has yet.
        """
        loader = self.loader
        content = content_key(getattr(loader.images, "whole", loader.images))  # a part knows its pictures by number
        views = (loader.recipes, loader.size, loader.view_seed, loader.images.digest, content)
        for name, teacher in self.teachers.items():
            encoder = teacher.encoder
            pixels = (encoder.preprocessing.mean, encoder.preprocessing.std)
            question = (encoder.digest, encoder.feature, pixels, teacher.size, views, precision)
            views_kept = loader.replay * loader.teacher_views
            store = TargetStore(folder, question, views_kept, len(loader.images), self.layouts[name], bits)
            if store.must_fit:
                store.fit(self._sample(name, autocast))
            self.stores[name] = store

    @torch.no_grad()
    def _sample(self, name: str, autocast: Autocast) -> Features:
        """A teacher's features of the first view of evenly spaced images, whatever a run's seed and batches are."""
        device = self.teachers[name].encoder.mean.device
        found = []
        for raw in self.loader.first_views(SAMPLE):
            with autocast():
                found.append(self.teachers[name].embed(self.loader.finish_all(raw, device).pixels[0]))
        return _joined(found)

    def outputs(self, views: ViewBatch, autocast: Autocast) -> dict[str, Features]:
        """Each teacher's features of its views, view-major: from its store where all are there, else computed."""
        return {name: self._one(name, teacher, views, autocast) for name, teacher in self.teachers.items()}

    @torch.no_grad()
    def look(self, pixels: Tensor, autocast: Autocast) -> dict[str, Features]:
        """Each teacher's features of any views (N, 3, S, S) in [0, 1], which no store keeps."""
        with autocast():
            return {name: teacher.embed(pixels) for name, teacher in self.teachers.items()}

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings of images (B, 3, S, S) in [0, 1]; of several teachers the unit rows side by side."""
        rows = [teacher.embed(pixels).embedding for teacher in self.teachers.values()]
        return rows[0] if len(rows) == 1 else torch.cat([F.normalize(row.float(), dim=1) for row in rows], dim=1)

    def _one(self, name: str, teacher: Teacher, views: ViewBatch, autocast: Autocast) -> Features:
        teacher_views, store, device = (
            views.pixels[: views.teacher_views],
            self.stores.get(name),
            views.pixels[0].device,
        )
        numbers = [self.loader.cycle(views.epoch) * len(teacher_views) + v for v in range(len(teacher_views))]
        if store is not None and (known := store.get(numbers, views.index, device)) is not None:
            return known
        with torch.no_grad(), autocast():
            teacher_outputs = teacher.embed(torch.cat(teacher_views), "" if store else self.depth(name))
        return teacher_outputs if store is None else store.put(numbers, views.index, teacher_outputs)

    def is_complete(self) -> bool:
        """Whether every row of every store is there; a row that rotted since is found when it is read, and computed again."""
        return bool(self.stores) and all(store.filled() == 1 for store in self.stores.values())

    def flush(self) -> None:
        """Ask the system to write all stores out."""
        for store in self.stores.values():
            store.flush()
