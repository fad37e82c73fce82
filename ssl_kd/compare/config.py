"""The settings of a comparison, read from YAML and the command line, and their checks before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ssl_kd.errors import UserError, one_of
from ssl_kd.runtime.objects import names_code
from ssl_kd.validation import SEEDS, check_settings, described, must_be_known, must_fit, must_hold, setting, types_of

Kind = TypeVar("Kind")
BY_HAND = (
    "feature",
    "format",
    "branch",
    "arch",
    "arch_args",
    "mean",
    "std",
)  # of a teacher, as `load_teacher` takes them


@dataclass(frozen=True)
class TeacherRow:
    """One teacher: a checkpoint or a name of the zoo; from Python an Encoder. size: its input size, 0: the views'.

    What stands behind `size` is for `load_teacher`: how to read a file that says too little of itself.
    """

    name: str
    path: Any = ""
    size: int = 0
    feature: str = ""
    format: str = ""
    branch: str = ""
    arch: str = ""
    arch_args: dict[str, Any] = field(default_factory=dict)
    mean: Any = None
    std: Any = None

    @property
    def by_hand(self) -> dict[str, Any]:
        """What is given for `load_teacher`."""
        given = {name: getattr(self, name) for name in BY_HAND}
        return {name: value for name, value in given.items() if value not in ("", None, {})}


@dataclass(frozen=True)
class StudentRow:
    """One student: an architecture and its arguments."""

    name: str
    arch: str = "resnet18"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolRow:
    """A part of the images: so many (0: all), with a long tail of folders where `tail` is below 1 (1/100: 0.01)."""

    name: str
    count: int = 0
    tail: float = 1.0


@dataclass(frozen=True)
class BudgetRow:
    """What each student may use: so many looks at images, or minutes of training."""

    name: str
    looks: int = 0
    minutes: float = 0.0


@dataclass(frozen=True)
class ExternalRow:
    """Weights that something else made, judged beside the others: one file, or one for each seed in their order."""

    name: str
    weights: tuple[str, ...] = ()
    feature: str = ""
    format: str = ""
    student: str = ""  # the student that it stands beside; empty: all


@dataclass
class WhatSettings:
    """What is compared."""

    teachers: dict[Any, Any] = field(
        default_factory=dict,
        metadata=described(
            "{NAME: FILE} or {NAME: {path, size, feature, format, arch, mean, std, ...}}",
            expects="a mapping",
            first=True,
            networks=True,
        ),
    )
    students: dict[str, Any] = field(
        default_factory=lambda: {"resnet18": "resnet18"},
        metadata=described("{NAME: ARCHITECTURE} or {NAME: {arch, args}}", expects="a mapping", first=True),
    )
    objectives: list[Any] = field(
        default_factory=lambda: ["bank"],
        metadata=described("presets, or {NAME: [terms]}", expects="a list", first=True),
    )
    own: str = setting(
        "", "objectives of your own beside them: package.module:name, several with commas", code=True, first=True
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata=described(
            "of weights and order; intervals are over them", expects="a list of whole numbers", first=True
        ),
    )
    budgets: dict[str, Any] = field(
        default_factory=lambda: {"short": 24000},
        metadata=described("{NAME: LOOKS} or {NAME: {looks}} or {NAME: {minutes}}", expects="a mapping", first=True),
    )
    equal_time: str = setting(
        "",
        "objective whose time for a budget's looks all get, by the pace that each is seen to have; empty: equal looks",
    )
    against: str = setting("", "objective that differences are shown to; empty: the first")


@dataclass
class ImageSettings:
    """Images without labels."""

    images: str = setting("", "unlabelled images, as `ssl-kd distill` takes them", first=True)
    pools: dict[str, Any] = field(
        default_factory=lambda: {"all": {}},
        metadata=described(
            "parts of them, {NAME: {count, tail}}; tail 0.01: folders of 1 to 1/100", expects="a mapping"
        ),
    )
    size: int = setting(0, "side of the views in pixels, and of the images judged; 0: the teacher's", least=0)
    views: str = setting(
        "small", "small (each objective's views, without blur, for thumbnails), published, or a scheme for all"
    )
    held_out: int = setting(
        0, "images kept out of training to watch and choose by; 0: 2 % of them, at least 32 and at most 512", least=0
    )
    points: int = setting(6, "measurements on them during a run, which the curves show", least=1)


@dataclass
class JudgeSettings:
    """Tasks with labels, for judging alone."""

    tasks: list[Any] = field(
        default_factory=list, metadata=described("as those of `ssl-kd eval`", expects="a list", first=True)
    )
    evaluators: list[str] = field(
        default_factory=lambda: ["knn/dino", "linear/quick-lbfgs", "retrieval/full", "agreement/neighbours"],
        metadata=described("likewise", expects="a list of names"),
    )
    train: int = setting(2000, "train images of a task that are used, evenly spaced; 0: all", least=0)
    test: int = setting(1000, "test images, likewise", least=0)
    encoders: dict[str, Any] = field(
        default_factory=dict,
        metadata=described(
            "students that something else made, {NAME: FILE} or {NAME: {weights: [FILE for each seed], student}}",
            expects="a mapping",
        ),
    )
    random: bool = setting(True, "a row of random weights for each student")
    scratch: bool = setting(False, "a row of the student trained with labels from scratch, on each task by itself")
    scratch_lr: float = setting(1e-3, "its learning rate, which is not searched", above=0)


@dataclass
class ChoiceSettings:
    """Learning rates."""

    lr: list[float] = field(
        default_factory=list,
        metadata=described(
            "several: each objective at the best of them for it; none: what a run takes for each student",
            expects="a list of numbers",
            first=True,
        ),
    )
    tune_seed: int = setting(100, "the seed on which they are tried, which enters no table", least=0, below=SEEDS)
    tune_share: float = setting(1.0, "share of the smallest budget's looks that a trial has", above=0, most=1)
    tune_task: dict[str, Any] = field(
        default_factory=dict,
        metadata=described(
            "a task that is set aside for choosing and judged nowhere; empty: neighbours in common on held-out images",
            expects="a mapping",
        ),
    )


@dataclass
class StepSettings:
    """Steps and stored targets."""

    batch_size: int = setting(32, "images at a time", least=2)
    optimizer: Literal["adamw", "sgd", "muon"] = setting("muon", "muon, adamw or sgd")
    weight_decay: float = setting(0.02, "as in `ssl-kd distill`", least=0)
    warmup: float = setting(0.2, "epochs", least=0)
    replay: int = setting(
        0, "views of each image that come round again; 0: as many as the longest budget has epochs", least=0
    )
    targets: str = setting("", "folder of the stored teacher outputs; empty: targets in out")
    target_bits: Literal[16, 4] = setting(16, "of stored patches and layers, as in `ssl-kd distill`")
    targets_gb: float = setting(20.0, "room for them; what does not fit is asked of the teacher each time", least=0)


@dataclass
class PlaceSettings:
    """Machine and folder."""

    out: str = setting("", "folder of the comparison; the same command resumes it", first=True)
    workers: int = setting(1, "processes that share the cells; torchrun does the same", least=1)
    threads: int = setting(2, "threads that decode images", least=1)
    precision: Literal["32-true", "bf16-mixed"] = setting("32-true", "32-true or bf16-mixed")
    accelerator: Literal["auto", "cpu", "cuda"] = setting("auto", "auto, cpu or cuda")
    save_minutes: float = setting(5.0, "minutes between saved states of a run", least=0)
    max_unreadable: float = setting(0.01, "share of images that may fail to decode, 0 to 1", least=0, most=1)
    show: bool = setting(False, "only tables and report of what is finished so far")
    quiet: bool = setting(False, "no progress")


@dataclass
class CompareConfig(
    PlaceSettings, StepSettings, ChoiceSettings, JudgeSettings, ImageSettings, WhatSettings
):  # dataclasses begin with the fields of the last base
    """Compare objectives: teachers x students x objectives x seeds x budgets on one image source, judged alike."""


# ---------------------------------------------------------------------------------------------------- the rows


def teachers_of(config: CompareConfig) -> dict[str, TeacherRow]:
    """The teachers by name."""
    return _rows(TeacherRow, config.teachers, "teachers", "path")


def students_of(config: CompareConfig) -> dict[str, StudentRow]:
    """The students by name."""
    return _rows(StudentRow, config.students, "students", "arch")


def pools_of(config: CompareConfig) -> dict[str, PoolRow]:
    """The parts of the images by name."""
    return _rows(PoolRow, config.pools, "pools", "count")


def budgets_of(config: CompareConfig) -> dict[str, BudgetRow]:
    """The budgets by name."""
    return _rows(BudgetRow, config.budgets, "budgets", "looks")


def externals_of(config: CompareConfig) -> dict[str, ExternalRow]:
    """The students from elsewhere, by name."""
    given = {
        name: {**line, "weights": _tuple(line.get("weights"))}
        if isinstance(line, Mapping)
        else {"weights": _tuple(line)}
        for name, line in config.encoders.items()
    }
    return _rows(ExternalRow, given, "encoders", "weights", empty=True)


def _tuple(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, list | tuple) else (given,)


Objective = str | list[dict[str, Any]]


def objectives_of(config: CompareConfig) -> dict[str, Objective]:
    """The objectives by the name that tables show: a preset's, a given one, or package.module:name."""
    found: dict[str, Objective] = {}
    for one in [*config.objectives, *filter(None, (part.strip() for part in config.own.split(",")))]:
        named = {one: one} if isinstance(one, str) else one
        if not isinstance(named, Mapping) or len(named) != 1:
            raise UserError(f"objectives: expected a preset's name or {{NAME: [terms]}}, got {one!r:.80}")
        name, spec = next(iter(named.items()))
        if name in found:
            raise UserError(f"objectives: two are called {name!r}; give each a name of its own")
        found[str(name)] = spec
    return found


def _rows(kind: type[Kind], given: Any, what: str, short: str, empty: bool = False) -> dict[str, Kind]:
    """The lines of a mapping as rows of a dataclass; a bare value stands for the setting `short`."""
    if not isinstance(given, Mapping) or not (given or empty):
        raise UserError(f"{what}: expected a mapping {{NAME: ...}} with at least one entry, got {given!r:.80}")
    kinds = {name: one for name, one in types_of(kind).items() if name != "name"}
    found = {}
    for name, line in given.items():
        if not isinstance(name, str) or not name:
            raise UserError(f"{what}: expected a name for each entry, got {name!r}")
        values = dict(line) if isinstance(line, Mapping) else {short: line}
        must_be_known(values, list(kinds), f"{what}: {name}")
        found[name] = kind(name, **{k: must_fit(f"{what}: {k} of {name}", v, kinds[k]) for k, v in values.items()})  # type: ignore[call-arg]
    return found


# --------------------------------------------------------------------------------------------------- the checks


def check(config: CompareConfig) -> None:
    """Raise UserError for the first setting that cannot be right, before anything is loaded or written."""
    check_settings(config)
    teachers, students, budgets = teachers_of(config), students_of(config), budgets_of(config)
    objectives = objectives_of(config)
    must_hold(
        (
            (bool(config.out), "out: expected a folder to write to; got nothing"),
            (bool(config.images), "images: expected a folder, a zip or a data set; got nothing"),
            (bool(config.tasks), "tasks: expected at least one task to judge students on; got none"),
            (bool(objectives), "objectives: expected at least one; got none"),
            (all(0 < lr for lr in config.lr), f"lr: expected rates above 0, got {config.lr}"),
            (
                bool(config.seeds) and len(set(config.seeds)) == len(config.seeds),
                f"seeds: expected different whole numbers, got {config.seeds}",
            ),
            (
                config.tune_seed not in config.seeds,
                f"tune_seed: {config.tune_seed} is among seeds, whose figures enter the table; choose by another",
            ),
        )
    )
    for seed in config.seeds:
        must_hold(((0 <= seed < SEEDS, f"seeds: expected from 0 to below 2^63, got {seed}"),))
    for teacher in teachers.values():
        must_hold(((bool(teacher.path), f"teachers: {teacher.name} needs a file, as in {{{teacher.name}: FILE}}"),))
    _check_budgets(config, budgets)
    for pool in pools_of(config).values():
        must_hold(
            (
                (pool.count >= 0, f"pools: count of {pool.name}: expected at least 0, got {pool.count}"),
                (0 < pool.tail <= 1, f"pools: tail of {pool.name}: expected above 0 to 1, got {pool.tail}"),
            )
        )
    for external in externals_of(config).values():
        must_hold(
            (
                (
                    0 < len(external.weights) <= len(config.seeds) and all(map(_is_text, external.weights)),
                    f"encoders: weights of {external.name}: expected a file, or one for each of the {len(config.seeds)} seeds",
                ),
            )
        )
        if external.student:
            one_of(f"encoders: student of {external.name}", external.student, students)
    for name in filter(None, (config.equal_time, config.against)):
        one_of("equal_time" if name == config.equal_time else "against", name, objectives)
    _check_objectives(config, objectives)


def _check_budgets(config: CompareConfig, budgets: Mapping[str, BudgetRow]) -> None:
    for row in budgets.values():
        must_hold(
            (
                (
                    (row.looks > 0) != (row.minutes > 0),
                    f"budgets: {row.name} needs looks or minutes above 0, one of the two; got {row.looks} and {row.minutes}",
                ),
                (
                    not (row.minutes and config.equal_time),
                    f"equal_time: {row.name} is in minutes already; give equal_time with budgets in looks",
                ),
                (
                    not row.minutes or config.replay > 0,
                    f"replay: how many views {row.name} will need is not known ahead; give replay 1 or more",
                ),
            )
        )


def _check_objectives(config: CompareConfig, objectives: Mapping[str, Objective]) -> None:
    """Presets are known and terms are right; a file names no code."""
    from ssl_kd.data.augment import SCHEMES
    from ssl_kd.objectives.factory import terms_of

    own = [part.strip() for part in config.own.split(",") if part.strip()]
    must_hold((names_code(name), f"own: expected package.module:name, got {name!r}") for name in own)
    for name, spec in objectives.items():
        if name in own:
            continue
        if isinstance(spec, str) and names_code(spec):
            raise UserError(f"objectives: {spec} names code, and a file's settings run none; give it as --own {spec}")
        terms_of(spec)
    if config.views not in ("small", "published"):
        one_of("views", config.views, ["small", "published", *SCHEMES])


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
