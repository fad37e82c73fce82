"""Every setting with its unit and default, as plain dataclasses: the command line, YAML files and Python share them.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any

from ssl_kd.errors import UserError, nearest
from ssl_kd.runtime import loggers
from ssl_kd.validation import Rule, must_hold, rules_of_training


@dataclass
class DistillConfig:
    """Distil a frozen self-supervised teacher into a small student, without labels.

    Args:
        teacher: checkpoint file, or a name such as dino_vits16
        teacher_feature: which of the teacher's features to match (cls, pool, ...); empty: its family's default
        teacher_format: checkpoint format, only where it cannot be told from the file
        teachers: several teachers instead of one, {NAME: FILE} or {NAME: {file, objective, weight, feature, format, size}}
        teacher_drop: probability that a teacher which the student already follows sits out a step, 0 to below 1
        student: timm architecture, e.g. mobilenetv3_small_100, vit_tiny_patch16_224; empty: resnet18, or that of student_weights
        student_args: extra arguments of the architecture, e.g. {small_stem: true} or {img_size: 32, patch_size: 4}
        student_weights: a student file to start from; empty: random weights
        images: unlabelled images: folder, zip, tar shards (pattern, folder or URL) or data set
        out: run folder; the same command goes on with an interrupted run
        objective: default, dlkd, simreg, seed, compress_1q, rkd, ... (all presets: docs/objectives.md), or a list of terms
        views: augmentation scheme (weak, strong, multi, rot4, ...); empty: the objective's own
        mix: none, mixup or cutmix, before both networks; empty: the objective's own (mixup for lightly_v1 and lightly_v3)
        mix_probability: share of batches that are mixed, 0 to 1
        replay: views of each image whose teacher outputs are kept and replayed in turn; 0: new views, teacher always online
        targets: folder of the replayed outputs, which runs on the same teacher, images, views and seed share; empty: the run's
        size: side of the square views, in pixels; 0: the teacher's
        crop_ratio: share of the shorter side that the student's centre crop will keep, above 0 to 1; 0: the teacher's
        epochs: passes over the images
        batch_size: images at a time (views multiply it); short runs do better with 64
        accumulate: so many batches make one step, as one batch of so many times the size would
        optimizer: adamw or sgd (momentum 0.9)
        lr: peak learning rate; a short run of a convolutional student wants more, up to 1.6e-2 (docs/objectives.md)
        weight_decay: decoupled (adamw) or L2 (sgd); not on biases and norms
        warmup: epochs of linear warm-up before the cosine
        clip: largest gradient norm; 0: no clipping
        seed: of weights, shuffling and views
        threads: decoding threads
        precision: auto (bf16 where a probe finds it faster), 32-true or bf16-mixed
        accelerator: auto, cpu or cuda
        compile: let torch.compile build both networks (needs a C++ compiler; the first steps take minutes)
        skip_nonfinite: so many steps whose loss or gradient is no number are left out before the run stops
        max_unreadable: share of images that may fail to decode before the run stops, 0 to 1
        log_every: steps between lines of metrics.jsonl
        measure_gradients: log each term's gradient norm at the student's features as well
        log: where these figures go as well: csv, tensorboard, wandb (several with commas), or jsonl for nowhere else
        health_every: epochs between looks at held-out images (docs/health.md), fractions too; 0: none is held out
        health_images: how many are held out of training; 0: 512 or 2 %, whichever is fewer, and none of less than 1,600
        patience: looks without a better neighbour overlap after which the run ends early; 0: never
        save_minutes: minutes between saved states
        overwrite: start again in a run folder that already holds something
        quiet: no progress bar
        teacher_digest: SHA-256 that the teacher must have, as a run's config.yaml records it; empty: any
        images_digest: digest that the images must have, likewise; empty: any
        student_digest: SHA-256 that student_weights must have, likewise; empty: any
    """

    teacher: str = ""
    teacher_feature: str = ""
    teacher_format: str = ""
    teachers: dict[str, Any] = field(default_factory=dict)
    teacher_drop: float = 0.0
    student: str = ""
    student_args: dict[str, Any] = field(default_factory=dict)
    student_weights: str = ""
    images: str = ""
    out: str = ""
    objective: str | list[dict[str, Any]] = "default"
    views: str = ""
    mix: str = ""
    mix_probability: float = 1.0
    replay: int = 0
    targets: str = ""
    size: int = 0
    crop_ratio: float = 0.0
    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.02
    warmup: float = 2.0
    clip: float = 1.0
    seed: int = 0
    threads: int = 2
    precision: str = "auto"
    accelerator: str = "auto"
    compile: bool = False
    skip_nonfinite: int = 0
    max_unreadable: float = 0.01
    log_every: int = 20
    measure_gradients: bool = False
    log: str = "csv"
    health_every: float = 1.0
    health_images: int = 0
    patience: int = 0
    save_minutes: float = 5.0
    overwrite: bool = False
    quiet: bool = False
    teacher_digest: str = ""
    images_digest: str = ""
    student_digest: str = ""


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher of a run. `size` is the side in pixels at which it sees the views; 0: the run's size, or its own."""

    file: Any  # a checkpoint file, a name of the zoo, or from Python an Encoder
    objective: str | list[dict[str, Any]] = "default"
    weight: float = 1.0
    feature: str = ""
    format: str = ""
    size: int = 0
    digest: str = ""

    def recorded(self, encoder: Any) -> dict[str, Any]:
        """The line as config.yaml keeps it, with the digest of the encoder that it led to."""
        line = {f.name: getattr(self, f.name) for f in fields(self)}
        return line | {"file": self.file if isinstance(self.file, str) else encoder.origin, "digest": encoder.digest}


def teacher_specs(config: DistillConfig) -> dict[str, TeacherSpec]:
    """The teachers of a config by name; a single one has the name "". UserError for a line that cannot be right."""
    if not config.teachers:
        single = TeacherSpec(
            config.teacher,
            config.objective,
            feature=config.teacher_feature,
            format=config.teacher_format,
            digest=config.teacher_digest,
        )
        return {"": single}
    return {name: _line(name, given, config) for name, given in config.teachers.items()}


def _line(name: str, given: Any, config: DistillConfig) -> TeacherSpec:
    line = dict(given) if isinstance(given, Mapping) else {"file": given}
    known = [f.name for f in fields(TeacherSpec)]
    if not isinstance(name, str) or not name or "." in name:
        raise UserError(f"teachers: expected a name without dots for each teacher, got {name!r}")
    for key in line:
        if key not in known:
            raise UserError(f"teachers: {name} has no setting {key!r}.{nearest(str(key), known)} It knows: {known}")
    file = line.get("file")
    if not file or not (isinstance(file, (str, PathLike)) or hasattr(file, "backbone")):
        raise UserError(f"teachers: {name} needs a file, as in {{{name}: FILE}}; got {given!r}")
    for key in ("feature", "format", "digest"):
        if not isinstance(line.get(key, ""), str):
            raise UserError(f"teachers: {key} of {name}: expected a word, got {line[key]!r}")
    line = {"objective": config.objective} | line
    for key, kind in (("weight", (int, float)), ("size", int)):
        value = line.get(key, 1)
        if not isinstance(value, kind) or isinstance(value, bool) or value < 0 or (key == "weight" and not value):
            raise UserError(f"teachers: {key} of {name}: expected a number above 0, got {value!r}")
    return TeacherSpec(**line)


def check(config: DistillConfig) -> None:
    """Raise UserError for the first setting that cannot be right, before anything is loaded or written."""
    must_hold((*_of_distilling(config), *rules_of_training(config)))
    loggers.names(config.log)
    teacher_specs(config)


def _of_distilling(config: DistillConfig) -> tuple[Rule, ...]:
    return (
        (
            bool(config.teacher) != bool(config.teachers),
            "teacher: expected a checkpoint file or a name (or several as teachers, not both); got "
            + (
                f"{config.teacher} and teachers {', '.join(map(str, config.teachers))}" if config.teacher else "nothing"
            ),
        ),
        (
            0 <= config.teacher_drop < 1,
            f"teacher_drop: expected a probability from 0 to below 1, got {config.teacher_drop}",
        ),
        (config.accumulate >= 1, f"accumulate: expected at least 1 batch per step, got {config.accumulate}"),
        (config.skip_nonfinite >= 0, f"skip_nonfinite: expected 0 or more steps, got {config.skip_nonfinite}"),
        (
            config.mix in ("", "none", "mixup", "cutmix"),
            f"mix: expected none, mixup, cutmix or nothing, got {config.mix!r}",
        ),
        (
            0 <= config.mix_probability <= 1,
            f"mix_probability: expected a share from 0 to 1, got {config.mix_probability}",
        ),
        (config.replay >= 0, f"replay: expected 0 (online) or a number of views, got {config.replay}"),
        (config.size >= 0, f"size: expected a side in pixels or 0 for the teacher's, got {config.size}"),
        (0 <= config.crop_ratio <= 1, f"crop_ratio: expected a share from 0 to 1, got {config.crop_ratio}"),
        (config.warmup >= 0, f"warmup: expected 0 or more epochs, got {config.warmup}"),
        (config.clip >= 0, f"clip: expected 0 (none) or more, got {config.clip}"),
        (config.log_every >= 1, f"log_every: expected at least 1 step, got {config.log_every}"),
        (config.health_every >= 0, f"health_every: expected 0 (never) or more epochs, got {config.health_every}"),
        (config.health_images >= 0, f"health_images: expected 0 (as many as fit) or more, got {config.health_images}"),
        (config.patience >= 0, f"patience: expected 0 (never end early) or more looks, got {config.patience}"),
        (config.save_minutes >= 0, f"save_minutes: expected 0 or more, got {config.save_minutes}"),
        (0 <= config.max_unreadable <= 1, f"max_unreadable: expected a share from 0 to 1, got {config.max_unreadable}"),
        (config.optimizer in ("adamw", "sgd"), f"optimizer: expected adamw or sgd, got {config.optimizer!r}"),
    )
