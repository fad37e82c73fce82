"""The loop: a frozen teacher and a student look at the same views, the objective answers with one number, Fabric steps.

    student = ssl_kd.distill(teacher="swav_800ep_pretrain.pth.tar", student="resnet18", images="photos/", out="runs/x")

The same call goes on with an interrupted run: shuffling and views are functions of (seed, epoch, index), and the saved
state holds the student, the heads, the queues, the optimiser, the position and the random state.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kd import ranks
from ssl_kd.checkpoint import load_teacher, save_student
from ssl_kd.config import DistillConfig, check
from ssl_kd.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder, Features, build
from ssl_kd.errors import NonFinite, UserError, nearest
from ssl_kd.images import Images, open_images
from ssl_kd.objectives import WeightedSum, build_objective
from ssl_kd.objectives.presets import PRESET_VIEWS
from ssl_kd.precision import device_kind, make_fabric
from ssl_kd.progress import Progress
from ssl_kd.run import LAST, STUDENT, RunFolder, atomic_text, environment
from ssl_kd.targets import TargetStore
from ssl_kd.views import ViewLoader, Views, scheme


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; the state is saved and the message says how to go on."""


@dataclass(frozen=True)
class Distilled:
    """What a finished run leaves: the student (eval mode), where it lies, and how it went."""

    student: Encoder
    path: Path
    out: Path
    seconds: float
    images_per_second: float
    last: dict[str, float]


class Batch:
    """What one step looks at. A plain class: Fabric would take a dataclass apart to cast its tensors."""

    def __init__(self, views: Views, teacher: Features):
        self.views, self.teacher = views, teacher


class Pair(nn.Module):
    """Student and objective: all that is trained."""

    def __init__(self, student: Encoder, objective: WeightedSum):
        super().__init__()
        self.student, self.objective = student, objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its terms on one batch of views."""
        views, pixels = len(batch.views.pixels), torch.cat(batch.views.pixels)
        sizes = ranks.counts(len(batch.views), pixels.device)
        student = ranks.whole_batch(self.student(pixels), views, sizes)
        teacher = ranks.whole_batch(batch.teacher, views, sizes)
        index = ranks.whole_index(batch.views.index, sizes, pixels.device)
        return self.objective(student, teacher, Views(index, batch.views.epoch, batch.views.pixels))


def distill(
    teacher: str | Path | Encoder | None = None,
    student: str | Encoder | None = None,
    images: str | Path | Images | None = None,
    config: DistillConfig | None = None,
    **settings: Any,
) -> Distilled:
    """Distil `teacher` into `student` on unlabelled `images`; returns the trained student.

    teacher: file, name or Encoder. student: architecture name or Encoder (trained in place). images: folder, zip, data
    set or Images. Settings are the fields of DistillConfig. Raises UserError for bad input before anything is written.
    """
    with _loop(_merge(config, teacher, student, images, settings), teacher, student, images) as loop:
        return loop.run()


def fill_targets(
    teacher: str | Path | Encoder | None = None,
    student: str | Encoder | None = None,
    images: str | Path | Images | None = None,
    config: DistillConfig | None = None,
    **settings: Any,
) -> TargetStore:
    """Store the teacher's word on all replayed views ahead of `distill` with the same settings, in the same run folder."""
    merged = _merge(config, teacher, student, images, settings)
    if not merged.replay:
        raise UserError("replay: expected at least 1 view of each image to store targets for, got 0")
    with _loop(merged, teacher, student, images) as loop:
        return loop.fill()


@contextmanager
def _loop(config: DistillConfig, teacher, student, images) -> Iterator[_Loop]:
    """Everything that a run needs, checked before its folder is touched; the folder is locked while this is open."""
    check(config)
    torch.manual_seed(config.seed)
    images = images if isinstance(images, Images) else open_images(config.images, max_unreadable=config.max_unreadable)
    if not isinstance(teacher, Encoder):
        teacher = load_teacher(
            config.teacher, feature=config.teacher_feature or None, format=config.teacher_format or None
        )
    teacher.eval().requires_grad_(False)
    contract = teacher.preprocessing
    if config.size or config.crop_ratio:
        contract = contract.at(config.size or contract.size, config.crop_ratio or None)
    student = student if isinstance(student, Encoder) else _student(config, contract)
    recipes = scheme(_views_name(config))
    objective = build_objective(config.objective, student.dim, teacher.dim)
    if len(recipes) < objective.min_views:
        raise UserError(
            f"views: this objective compares views of an image and needs at least {objective.min_views}, but "
            f"{_views_name(config)!r} gives {len(recipes)}; use multi or rot4"
        )
    loader = ViewLoader(images, recipes, contract.size, config.batch_size, config.seed, config.threads, config.replay)
    loader.batches_per_epoch()  # says that there are too few images before anything is written
    device_kind(config.accelerator)  # and this, that there is no such device
    settings = asdict(config) | _inputs(config, teacher, images)
    run = RunFolder(config.out, settings, config.overwrite, writes=os.environ.get("RANK", "0") == "0")
    try:
        saved = None if config.overwrite else run.restore()
        # An interrupted run goes on in the precision it began with, whatever a new probe would say.
        fabric, precision = make_fabric(config.accelerator, saved["precision"] if saved else config.precision)
        yield _Loop(fabric, precision, config, run, teacher, student, objective, loader)
    finally:
        run.close()


def _inputs(config: DistillConfig, teacher: Encoder, images: Images) -> dict[str, str]:
    """The digests of what goes in; UserError where the config asks for others, as a copied config.yaml does."""
    found = {"teacher_digest": teacher.digest, "images_digest": images.digest}
    for key, digest in found.items():
        if (asked := getattr(config, key)) not in ("", digest):
            what = key.removesuffix("_digest")
            raise UserError(f"{what}: the config asks for digest {asked}, but {getattr(config, what)} has {digest}")
    return found


def _merge(config: DistillConfig | None, teacher, student, images, settings: dict[str, Any]) -> DistillConfig:
    known = [f.name for f in fields(DistillConfig)]
    for key in settings:
        if key not in known:
            raise UserError(f"distill has no setting {key!r}.{nearest(key, known)} It knows: {', '.join(known)}")
    named = {
        "teacher": teacher.origin if isinstance(teacher, Encoder) else teacher and str(teacher),
        "student": student.arch if isinstance(student, Encoder) else student,
        "images": f"<{len(images)} images from Python>" if isinstance(images, Images) else images and str(images),
    }
    given: dict[str, Any] = settings | {key: value for key, value in named.items() if value}
    if "out" in given:
        given["out"] = str(given["out"])
    return replace(config or DistillConfig(), **given)


def _student(config: DistillConfig, contract) -> Encoder:
    """A new student (or a saved one to go on from) that sees what the teacher sees, by ImageNet's mean and std."""
    if config.student_weights:
        return load_teacher(config.student_weights).train().requires_grad_(True)
    contract = replace(contract, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return build(config.student, preprocessing=contract, **config.student_args)


def _views_name(config: DistillConfig) -> str:
    if config.views:
        return config.views
    return PRESET_VIEWS.get(config.objective, "weak") if isinstance(config.objective, str) else "weak"


class _Loop:
    """One run from its first (or next) step to the saved student."""

    def __init__(
        self,
        fabric,
        precision,
        config: DistillConfig,
        run: RunFolder,
        teacher: Encoder,
        student: Encoder,
        objective,
        loader,
    ):
        self.fabric, self.precision = fabric, precision
        loader.share = (ranks.rank(), ranks.world_size())
        ranks.synchronise_norms(student)
        self.config, self.run_folder, self.loader = config, run, loader
        with fabric.rank_zero_first():
            self.store = _store(config, run, teacher, loader, self.precision) if config.replay else None
        self.teacher = teacher.to(self.fabric.device).to(memory_format=torch.channels_last)
        pair = Pair(student, objective).to(memory_format=torch.channels_last)
        self.bare = pair
        self.pair, self.optimizer = self.fabric.setup(pair, _optimizer(pair, config))
        self.steps_per_epoch = loader.batches_per_epoch()
        self.total = self.steps_per_epoch * config.epochs
        self.quiet = config.quiet or not fabric.is_global_zero
        self.step = 0  # steps done
        self.seconds = 0.0  # of earlier sessions of this run and of this one
        self.waited = 0.0
        self.last: dict[str, float] = {}

    def run(self) -> Distilled:
        """Train to the end and save the student."""
        self.fabric.barrier()  # every rank begins from what the first has on disk
        saved = self.run_folder.restore()
        if saved is not None:
            self._load(saved)
        began = self.seconds
        count = len(self.loader.images)
        self.pair.train()
        with (
            Progress("distill", count * self.config.epochs, quiet=self.quiet, start=self._images_done()) as bar,
            _stop_signals() as stop,
        ):
            saved_at = time.monotonic()
            for views in self._batches():
                started = time.monotonic()
                record = self._train_step(views)
                self.step += 1
                self.seconds += time.monotonic() - started
                bar.advance(
                    len(views) * ranks.world_size(),
                    loss=f"{record['loss']:.4f}",
                    epoch=1 + (self.step - 1) // self.steps_per_epoch,
                )
                if self.step % self.config.log_every == 0 or self.step == self.total:
                    self._log(record, bar.rate)
                if ranks.any_rank(bool(stop), self.fabric.device):
                    self._save()
                    why = stop[0] if stop else "a signal to another process"
                    raise Interrupted(
                        f"stopped by {why} after step {self.step} of {self.total}; give the same command to go on"
                    )
                if time.monotonic() - saved_at > self.config.save_minutes * 60 and self.step < self.total:
                    self._save()
                    saved_at = time.monotonic()
            rate = (count * self.config.epochs - bar.start) / max(self.seconds - began, 1e-9)
        return self._finish(rate)

    def _images_done(self) -> int:
        return round(len(self.loader.images) * self.step / self.steps_per_epoch)

    def _batches(self) -> Iterator[Views]:
        """The rest of this epoch and all later ones; counts the time spent waiting for images."""
        while self.step < self.total:
            epoch, start = divmod(self.step, self.steps_per_epoch)
            source = self.loader.epoch(epoch, start)
            while True:
                began = time.monotonic()
                raw = next(source, None)
                waited = time.monotonic() - began
                self.waited += waited
                self.seconds += waited
                if raw is None:
                    break
                yield raw

    def _train_step(self, raw: Views) -> dict[str, float]:
        rate = self._schedule()
        views = self.loader.finish_all(raw, self.fabric.device)
        total, terms = self.pair(Batch(views, self._teacher_says(views)))
        loss = total.item()
        self._must_be_finite("loss", loss, terms, raw)
        self.fabric.backward(total)
        limit = self.config.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.bare.parameters(), limit)
        self._must_be_finite("gradient norm", float(norm), terms, raw)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "lr": rate, "gradient_norm": float(norm)} | {k: float(v) for k, v in terms.items()}

    def _teacher_says(self, views: Views) -> Features:
        """The teacher's features of a batch: from the store where it has heard all of them, else asked and stored."""
        numbers = [self.loader.view_number(views.epoch, v) for v in range(len(views.pixels))]
        if self.store is not None:
            known = [self.store.get(number, views.index) for number in numbers]
            if all(rows is not None for rows in known):
                return Features(torch.cat([rows for rows in known if rows is not None]).to(self.fabric.device))
        with torch.no_grad(), self.fabric.autocast():
            features = self.teacher(torch.cat(views.pixels))
        if self.store is None:
            return features
        parts = features.embedding.float().chunk(len(numbers))
        kept = [self.store.put(number, views.index, part) for number, part in zip(numbers, parts, strict=True)]
        return Features(torch.cat(kept).to(self.fabric.device))

    def fill(self) -> TargetStore:
        """Ask the teacher about every view that will be replayed, without training."""
        assert self.store is not None
        count = len(self.loader.images) * self.config.replay
        with Progress("targets", count, quiet=self.quiet) as bar, _stop_signals() as stop:
            for epoch in range(self.config.replay):
                for raw in self.loader.epoch(epoch):
                    self._teacher_says(self.loader.finish_all(raw, self.fabric.device))
                    bar.advance(len(raw))
                    if stop:
                        self.store.flush()
                        raise Interrupted(f"stopped by {stop[0]}; the same command goes on with the targets")
        self.store.flush()
        return self.store

    def _schedule(self) -> float:
        warmup = min(self.config.warmup * self.steps_per_epoch, self.total / 2)
        rate = self.config.lr * _warmup_cosine(self.step, warmup, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _must_be_finite(self, what: str, value: float, terms: dict[str, Tensor], raw: Views) -> None:
        if math.isfinite(value):
            return
        ids = ", ".join(self.loader.images.ids[int(i)] for i in raw.index[:4])
        parts = ", ".join(f"{k} {float(v):.4g}" for k, v in terms.items())
        kept = self.run_folder.path / LAST
        good = f"the last good state is in {kept}" if kept.exists() else "no state had been saved yet"
        raise NonFinite(
            f"the {what} became {value} at step {self.step} ({parts}; images {ids}, ...); {good}. "
            f"Lower lr (now {self.config.lr}) or use precision 32-true in a new run folder"
        )

    def _log(self, record: dict[str, float], rate: float) -> None:
        self.last = record
        epoch = self.step / self.steps_per_epoch
        timing = {"images_per_s": round(rate, 1), "wait_share": round(self.waited / max(self.seconds, 1e-9), 4)}
        self.run_folder.log({"step": self.step, "epoch": round(epoch, 3)} | record | timing)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "precision": self.precision,
            "seconds": self.seconds,
            "waited": self.waited,
            "last": self.last,
            "pair": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        if self.fabric.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        self.run_folder.save(state)

    def _load(self, saved: dict[str, Any]) -> None:
        self.bare.load_state_dict(saved["pair"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds, self.waited, self.last = (saved[k] for k in ("step", "seconds", "waited", "last"))
        torch.set_rng_state(saved["torch_rng"])
        if "cuda_rng" in saved and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"])

    def _finish(self, rate: float) -> Distilled:
        self._save()
        student = self.bare.student.eval().to(memory_format=torch.contiguous_format)
        student.origin = f"distilled from {self.teacher.origin}"
        path = self.run_folder.path / STUDENT
        unreadable = self.loader.images.unreadable
        if self.run_folder.writes:
            save_student(
                student,
                path,
                teacher=self.teacher.origin,
                teacher_digest=self.teacher.digest,
                teacher_arch=self.teacher.arch,
                objective=self.config.objective,
                images=len(self.loader.images) - len(unreadable),
                epochs=self.config.epochs,
            )
            atomic_text(self.run_folder.path / "README.md", self._card(student, unreadable))
        return Distilled(student, path, self.run_folder.path, self.seconds, rate, self.last)

    def _card(self, student: Encoder, unreadable: dict[str, str]) -> str:
        count = sum(p.numel() for p in student.parameters())
        teacher_count = sum(p.numel() for p in self.teacher.parameters())
        losses = ", ".join(f"{k} {v:.4g}" for k, v in self.last.items())
        skipped = "".join(f"\n- {name}: {why}" for name, why in unreadable.items()) or " none"
        env = environment()
        return f"""# {self.config.student}, distilled from {self.teacher.arch}

| | |
| --- | --- |
| teacher | {self.teacher.origin} ({self.teacher.arch}, feature `{self.teacher.feature}`, {teacher_count:,} parameters) |
| student | {student.arch}, feature `{student.feature}`, width {student.dim}, {count:,} parameters |
| images | {len(self.loader.images):,} from {self.config.images}, no labels |
| steps | {self.step:,} of batch {self.config.batch_size}, {self.config.epochs} epochs, {self.seconds / 60:.1f} minutes |
| precision | {self.precision} on {self.fabric.device} ({env["machine"]}) |
| last step | {losses} |
| time spent waiting for images | {100 * self.waited / max(self.seconds, 1e-9):.1f} % |

Use it: `ssl_kd.load_teacher("{self.run_folder.path / STUDENT}")`, or `ssl-kd inspect {STUDENT}`.

Reproduce it: `{env["command"]}`, or `ssl-kd distill --config config.yaml --out elsewhere` (every setting is in `config.yaml`).

- `config.yaml`: every setting; `environment.json`: versions and machine
- `metrics.jsonl`: one line per {self.config.log_every} steps
- `{LAST}`: student, heads, queues, optimiser and position
- `{STUDENT}`: the student alone

Unreadable images:{skipped}
"""


def _store(config: DistillConfig, run: RunFolder, teacher: Encoder, loader: ViewLoader, precision: str) -> TargetStore:
    """The teacher's word on the replayed views, kept in the run folder under a digest of everything that decides it."""
    pixels = (teacher.preprocessing.mean, teacher.preprocessing.std)
    views = (loader.recipes, loader.size, loader.seed, loader.images.digest)
    return TargetStore(
        run.path / "targets",
        (teacher.digest, teacher.feature, pixels, views, precision),
        config.replay * len(loader.recipes),
        len(loader.images),
        teacher.dim,
    )


def _optimizer(pair: Pair, config: DistillConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over student and heads; no weight decay on vectors (norms, biases). That exception is our choice."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in pair.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1].append(parameter)
    lists = [
        {"params": group, "weight_decay": config.weight_decay if decays else 0.0}
        for decays, group in groups.items()
        if group
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(lists, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(lists, lr=config.lr)


def _warmup_cosine(step: int, warmup: float, total: int) -> float:
    """Factor in (0, 1]: linear up over `warmup` steps, then half a cosine down to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """Collect Ctrl-C and SIGTERM in a list instead of dying in the middle of a step. A second one kills as usual."""
    import threading

    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
