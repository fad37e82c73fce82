"""The settings of a distillation, each with its unit, range and default: the command line, YAML and Python share them.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import TYPE_CHECKING, Literal

from ssl_kd.checkpoints.reading import HELP, reading
from ssl_kd.distillation.student_specs import student_specs
from ssl_kd.errors import UserError, nearest
from ssl_kd.runtime import loggers
from ssl_kd.runtime.loggers import LogSettings
from ssl_kd.runtime.settings import MachineSettings
from ssl_kd.validation import SEEDS, Rule, check_settings, described, must_hold, setting

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

BY_HAND = ("branch", "arch", "arch_args", "mean", "std")  # of a teacher's line, as `load_teacher` takes them
OPTIONAL = (*BY_HAND, "prune")  # what config.yaml keeps only where it was given
# Where `module:name`, typed on the command line, becomes a row.
FORMATS = "ssl_kd.checkpoints.formats:FORMATS"
OBJECTIVES = {
    "term": ["ssl_kd.objectives:TERMS"],
    "distance": ["ssl_kd.objectives:DISTANCES"],
    "space": ["ssl_kd.objectives:TARGET_NORMS"],
    "projector": ["ssl_kd.objectives:PROJECTORS"],
    "relation": ["ssl_kd.objectives:RELATIONS"],
    "comparison": ["ssl_kd.objectives:DIVERGENCES"],
}
BETWEEN = "ssl_kd.distillation.between_terms:BETWEEN"
# A preset's name or its terms; a scheme's name or its recipes.
NameOrRows = str | list[dict[str, object]]


@dataclass
class TeacherSettings:
    """Teacher."""

    teacher: str | dict[str, object] = field(
        default="",
        metadata=described(
            "checkpoint file or folder, a name such as dino_vits16 or hf-hub:ORG/NAME, or a mapping {path, arch, mean, std, "
            "size, ...}: docs/teachers.md",
            expects="a file, a name, or a mapping with a path",
            first=True,
        ),
    )
    teacher_feature: str = setting("", "feature to match (cls, pool, ...); empty: its family's default")
    teacher_format: str = setting(
        "", "checkpoint format, only where it cannot be told from the file", tables={"": [FORMATS]}
    )
    teacher_branch: str = setting("", HELP["branch"], also="branch")
    teacher_arch: str = setting("", HELP["arch"], also="arch")
    teacher_arch_args: dict[str, object] = field(
        default_factory=dict, metadata=described(HELP["arch_args"], expects="a mapping", also="arch_args")
    )
    teacher_mean: str | float | list[float] = field(
        default="", metadata=described(HELP["mean"], expects="one or three numbers", also="mean", several=True)
    )
    teacher_std: str | float | list[float] = field(
        default="", metadata=described(HELP["std"], expects="one or three numbers", also="std", several=True)
    )
    teacher_size: int = setting(0, "input size of the teacher, in pixels; 0: the views' size, or its own", least=0)
    teachers: dict[object, object] = field(
        default_factory=dict,
        metadata=described(
            "several teachers instead of one, {NAME: FILE} or {NAME: {path, objective, weight, feature, size, arch, ...}}",
            expects="a mapping",
            tables={"format": [FORMATS], "objective": []} | OBJECTIVES,  # an objective need be no row
            networks=True,
        ),
    )
    teacher_drop: float = setting(
        0.0,
        "probability that a teacher which the student already follows sits out a step, 0 to below 1",
        least=0,
        below=1,
    )


@dataclass
class StudentSettings:
    """Student."""

    student: str = setting(
        "",
        "timm architecture, e.g. mobilenetv3_small_100, vit_tiny_patch16_224; empty: resnet18, or that of student_weights",
        first=True,
        code=True,
        tables={"": ["ssl_kd.models.factory:SOURCES"]},
    )
    student_args: dict[str, object] = field(
        default_factory=dict,
        metadata=described(
            "extra arguments of the architecture, e.g. {small_stem: true} or {img_size: 32, patch_size: 4}",
            expects="a mapping",
        ),
    )
    student_weights: str = setting("", "a student file to start from; empty: random weights")
    students: dict[object, object] | Literal[""] = field(
        default="",
        metadata=described(
            "several students that share each pass of the teacher, {NAME: ARCH} or {NAME: {arch, args, weights, objective, "
            "weight, lr, seed}}",
            expects="a mapping",
        ),
    )
    between: NameOrRows = field(
        default="",
        metadata=described(
            "terms between students: mutual, ensemble, online_neighbours, assistant, or a list of such terms",
            expects="a term's name or a list of terms",
            code=True,
            tables=OBJECTIVES | {"term": [BETWEEN, *OBJECTIVES["term"]]},  # a term may name an objective
        ),
    )


@dataclass
class DataSettings:
    """Images and views."""

    images: str = setting(
        "",
        "unlabelled images: folder, zip, tar shards (pattern, folder or URL) or data set",
        first=True,
        tables={"": ["ssl_kd.data.open:SOURCES"]},
        paths=True,
    )
    views: NameOrRows = field(
        default="",
        metadata=described(
            "augmentation scheme (weak, strong, multi, rot4, ...), or a list of recipes; empty: the objective's own",
            expects="a scheme's name or a list of recipes",
            first=True,
            code=True,
        ),
    )
    size: int = setting(0, "side of the square views, in pixels; 0: the teacher's", least=0, first=True)
    crop_ratio: float = setting(
        0.0,
        "share of the shorter side that the student's centre crop will keep, above 0 to 1; 0: the teacher's",
        least=0,
        most=1,
    )
    mix: Literal["", "none", "mixup", "cutmix"] = setting(
        "",
        "none, mixup or cutmix, before both networks; empty: the objective's own (mixup for lightly_v1 and lightly_v3)",
    )
    mix_probability: float = setting(1.0, "share of batches that are mixed, 0 to 1", least=0, most=1)
    max_unreadable: float = setting(
        0.01, "share of images that may fail to decode before the run stops, 0 to 1", least=0, most=1
    )
    verify: bool = setting(
        False,
        "read every byte of the images once, to know for certain which they are before anything stored for them is used; without, "
        "large sets are known by names, sizes, dates and inodes of all files and samples of some (docs/images.md)",
    )


@dataclass
class TargetSettings:
    """Stored teacher outputs."""

    replay: int = setting(
        0,
        "views of each image whose teacher outputs are stored and used in turn; 0: new views, teacher always online",
        least=0,
        first=True,
    )
    view_seed: int = setting(
        -1,
        "seed of the views alone, so that runs of other seeds can share stored outputs; -1: the run's seed",
        least=-1,
        below=SEEDS,
    )
    targets: str = setting(
        "",
        "folder of the stored outputs, which runs on the same teacher, images, views and view_seed share; empty: the run's",
    )
    target_bits: Literal[16, 4] = setting(
        16, "bits a number of stored patches and layers takes: 16, or 4 for a quarter of the room (docs/scaling.md)"
    )


@dataclass
class OptimiserSettings:
    """Objective, optimiser and schedule."""

    objective: NameOrRows = field(
        default="bank",
        metadata=described(
            "bank, dlkd, simreg, seed, compress_1q, rkd, ... (all presets: docs/objectives_catalogue.md), or a list of terms",
            expects="a preset's name or a list of terms",
            first=True,
            code=True,
            tables=OBJECTIVES,
        ),
    )
    epochs: int | Literal["auto"] = setting(
        "auto", "passes over the images; auto: as many as make a million looks, 20 to 400", least=1, first=True
    )
    steps: int = setting(0, "so many steps, whatever epochs says; 0: whole epochs", least=0)
    batch_size: int = setting(
        64,
        "images at a time (views multiply it); short runs do better with 32",
        least=2,
        why="samples are related to each other",
        first=True,
    )
    accumulate: int = setting(1, "so many batches make one step, as one batch of so many times the size would", least=1)
    optimizer: Literal["auto", "muon", "adamw", "sgd"] = setting(
        "auto", "muon, adamw or sgd (momentum 0.9); auto: muon, or adamw where lr is given"
    )
    lr: float | Literal["auto"] = setting(
        "auto",
        "peak; auto: 4e-2 for muon (2e-2 for MobileNets, ViTs and their like), 4e-3 for adamw, 5e-2 for sgd",
        above=0,
        first=True,
    )
    weight_decay: float = setting(0.02, "decoupled (adamw) or L2 (sgd); not on biases and norms", least=0)
    warmup: float | Literal["auto"] = setting(
        "auto", "epochs of linear warm-up before the cosine; auto: a twentieth of the run, 2 at most", least=0
    )
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping", least=0)
    compile: bool = setting(
        False, "let torch.compile build both networks (needs a C++ compiler; the first steps take minutes)"
    )
    skip_nonfinite: int = setting(
        0, "so many steps whose loss or gradient is not finite are left out before the run stops", least=0
    )


@dataclass
class MonitorSettings:
    """Monitoring on held-out images."""

    health_every: float = setting(
        1.0,
        "epochs between measurements on held-out images (docs/health.md), fractions too; 0: none is held out",
        least=0,
    )
    health_images: int = setting(
        0,
        "how many are held out of training; 0: 2 % of them, at most 512; of fewer than 1,600 images none",
        least=0,
    )
    patience: int = setting(
        0, "measurements without a better neighbour overlap after which the run ends early; 0: never", least=0
    )


@dataclass
class RunSettings:
    """Run folder."""

    out: str = setting("", "run folder; the same command resumes an interrupted run", first=True)
    save_minutes: float = setting(5.0, "minutes between saved states", least=0)
    overwrite: bool = setting(False, "start again in a run folder that already holds something")
    teacher_digest: str = setting(
        "", "SHA-256 that the teacher must have, as a run's config.yaml records it; empty: any"
    )
    images_digest: str = setting("", "digest that the images must have, likewise; empty: any")
    student_digest: str = setting("", "SHA-256 that student_weights must have, likewise; empty: any")


@dataclass
class DistillConfig(  # dataclasses begin with the fields of the last base
    MachineSettings,
    LogSettings,
    RunSettings,
    MonitorSettings,
    OptimiserSettings,
    TargetSettings,
    DataSettings,
    StudentSettings,
    TeacherSettings,
):
    """Distil a frozen self-supervised teacher into a small student, without labels."""


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher of a run. `size` is its input size in pixels; 0: the run's size, or its own.

    prune: share of its weights, the smallest of all layers together, that are set to 0 (R2KD's pruned copy).
    """

    file: object  # a checkpoint file, a name of the zoo, or from Python an Encoder or a module
    objective: NameOrRows = "bank"
    weight: float = 1.0
    feature: str = ""
    format: str = ""
    size: int = 0
    digest: str = ""
    prune: float = 0.0
    branch: str = ""
    arch: str = ""
    arch_args: Mapping[str, object] = field(default_factory=dict)
    mean: object = ""
    std: object = ""

    def by_hand(self) -> dict[str, object]:
        """What `load_teacher` is given beside the file."""
        given = {name: getattr(self, name) for name in ("feature", "format", *BY_HAND)}
        return {name: value for name, value in given.items() if value not in ("", {}, None)}

    def recorded(self, encoder: Encoder) -> dict[str, object]:
        """The line as config.yaml keeps it, with the digest of the encoder that it led to."""
        line = {f.name: getattr(self, f.name) for f in fields(self)}
        line = {name: value for name, value in line.items() if name not in OPTIONAL or value not in ("", {}, None, 0)}
        return line | {"file": self.file if isinstance(self.file, str) else encoder.origin, "digest": encoder.digest}


def teacher_specs(config: DistillConfig) -> dict[str, TeacherSpec]:
    """The teachers of a config by name; a single one has the name "". UserError for a line that cannot be right."""
    if config.teachers:
        return {str(name): _line(name, given, config) for name, given in config.teachers.items()}
    given = {name: getattr(config, f"teacher_{name}") for name in ("feature", "format", "size", "digest", *BY_HAND)}
    given = {name: value for name, value in given.items() if value not in ("", {}, 0)}
    if not isinstance(config.teacher, Mapping):
        return {"": _checked("", {"file": config.teacher, "objective": config.objective} | given)}
    line = _line("", config.teacher, config)
    if double := next((name for name in given if name in config.teacher), None):
        raise UserError(f"teacher_{double}: it is in teacher as well; give it once")
    return {"": _checked("", {f.name: getattr(line, f.name) for f in fields(line)} | given)}


def _line(name: object, given: object, config: DistillConfig) -> TeacherSpec:
    line = dict(given) if isinstance(given, Mapping) else {"file": given}
    known, who = [f.name for f in fields(TeacherSpec)], f"teachers: {name}" if config.teachers else "teacher:"
    if config.teachers and (not isinstance(name, str) or not name or "." in name):
        raise UserError(f"teachers: expected a name without dots for each teacher, got {name!r}")
    if "path" in line and "file" not in line:
        line["file"] = line.pop("path")
    for key in line:
        if key not in known:
            raise UserError(
                f"{who} has no setting {key!r}.{nearest(str(key), known)} It knows: path, {', '.join(known)}"
            )
    file = line.get("file")
    if not file or not (isinstance(file, (str, PathLike)) or hasattr(type(file), "state_dict")):
        example = f"{{{name}: FILE}}" if config.teachers else "{path: FILE}"
        raise UserError(f"{who} needs a file, as in {example}; got {given!r}")
    return _checked(str(name), {"objective": config.objective} | line)


def _checked(name: str, line: Mapping[str, object]) -> TeacherSpec:
    """The line, with UserError for a value that cannot be right."""
    for key in ("feature", "format", "digest", "branch", "arch"):
        if not isinstance(line.get(key, ""), str):
            raise UserError(f"teachers: {key} of {name}: expected text, got {line[key]!r}")
    for key, kind in (("weight", (int, float)), ("size", int)):
        value = line.get(key, 1)
        if not isinstance(value, kind) or isinstance(value, bool) or value < 0 or (key == "weight" and not value):
            raise UserError(f"teachers: {key} of {name}: expected a number above 0, got {value!r}")
    share = line.get("prune", 0)
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share < 1:
        raise UserError(f"teachers: prune of {name}: expected a share from 0 to below 1, got {share!r}")
    make: Callable[..., TeacherSpec] = TeacherSpec
    spec = make(**line)
    try:
        reading(**spec.by_hand())
    except UserError as error:
        raise UserError(f"teachers: {name}: {error}" if name else f"teacher: {error}") from error
    return spec


def check(config: DistillConfig) -> None:
    """Raise UserError for the first setting that cannot be right, before anything is loaded or written."""
    must_hold(_needed(config))
    check_settings(config)
    loggers.names(config.log)
    teacher_specs(config)
    student_specs(config)


def _needed(config: DistillConfig) -> tuple[Rule, ...]:
    several = f"{config.teacher} and teachers {', '.join(map(str, config.teachers))}"
    return (
        (
            bool(config.teacher) != bool(config.teachers),
            "teacher: expected a checkpoint file or a name (or several as teachers, not both); got "
            + (several if config.teacher else "nothing"),
        ),
        (
            not config.between or config.students != "",
            "between: expected several students that the terms are between, as in students: {a: resnet18, b: resnet34}; "
            "got none",
        ),
        (bool(config.images), "images: expected a folder, a zip or a data set; got nothing"),
        (bool(config.out), "out: expected a path to write to; got nothing"),
    )
