"""The settings of an evaluation: encoders x tasks x evaluators, read from YAML and the command line.

Nothing heavy is imported here, so that `--help` answers at once and a misspelt key is refused before anything loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from ssl_kd.checkpoints.reading import reading
from ssl_kd.errors import UserError, nearest, one_of
from ssl_kd.runtime.command_line import parse
from ssl_kd.validation import described

if TYPE_CHECKING:
    from ..datasets.tasks import Task
    from .cells import Settings

EXAMPLES = (
    "ssl-kd configs copy eval/four_sets my_eval.yaml     (set your tasks and weight files in it)",
    "ssl-kd eval my_eval.yaml --evaluators '[knn]' --out runs/knn",
    "ssl-kd eval --selfcheck dino_vits16 --imagenet FOLDER     (does our k-NN give the published figure?)",
)
BY_HAND = ("format", "branch", "arch", "arch_args", "mean", "std")  # of an encoder's entry
# Where `module:name`, typed on the command line, becomes a row.
TASK_TABLES = {"name": ["ssl_kd.eval.datasets.published:MAKERS"]}
ENCODER_TABLES = {"format": ["ssl_kd.checkpoints.formats:FORMATS"]}
EVALUATOR_TABLES = {
    "": [
        "ssl_kd.eval.evaluators.registry:EVALUATORS",
        *(f"ssl_kd.eval.evaluators.{kind}:PROTOCOLS" for kind in ("knn", "linear_probe", "few_shot", "retrieval")),
        "ssl_kd.eval.evaluators.robustness:PROTOCOLS",
    ]
}
MAPS = ("pca", "tsne", "umap")
E = TypeVar("E", "TaskConfig", "EncoderConfig")
SEEDS = 2**63  # torch's generators take no more, and those of a probe's draws count on from the seed


@dataclass
class EvalConfig:
    """Measure encoders on tasks: k-NN and linear probes, each with its interval and its share of the reference.

    Args:
        out: run folder for results.jsonl, results.csv, results.md; finished cells in it are not computed again
        tasks: list of {name, path} (a folder or zip with train/<class>/<file> and test/<class>/<file>), {name, train, test} (two folders), {name, root, download} (a torchvision data set) or {name, photos} (a folder or zip of photos without labels); with {corrupt, severity} its test images are noise, blur, ... 1 to 5
        encoders: list of {name, weights, feature, size, crop_ratio} (a checkpoint's file or folder, a name of the zoo, hf-hub:ORG/NAME, timm/NAME or torchvision/NAME; with {arch, mean, std} any bare state dict), {name, supervised} (the same, trained with labels), {name, like, seed} (the architecture of another one with random weights) or {name, features} (your own: by task {train: a.npz, test: b.npz}, or one .npz that `ssl-kd embed` made of the whole task)
        evaluators: list of knn, linear, fewshot, robustness, calibration, retrieval, asymmetric, agreement, cka, or one with its protocol: knn/dinov2, linear/quick-lbfgs
        ood: list of [inside, outside], names of tasks: how well each encoder tells the second's test images from the first's
        reference: name of the encoder that the others are compared with; empty: the first
        cache: folder for features, shared by any number of evaluations; empty: features in out; none: keep none
        batch_size: images per forward pass
        threads: decoding threads
        workers: processes that share the cells, and the processor's threads among them; figures are the same with any number
        index: name of an approximate index for the evaluators retrieval/top1000 and asymmetric/top1000: a factory string of faiss and how widely to look, as "IVF256,Flat nprobe=16"; trained once, kept beside the features, its recall noted; empty: exact
        device: cpu or cuda
        precision: 32-true or bf16-mixed; published protocols are 32-true, and every figure made otherwise says so
        engine: how networks are run when features are extracted: folded (batch norm in the convolutions), eager, compiled or openvino
        max_unreadable: share of images that may fail to decode before the run stops, 0 to 1
        verify: read every byte of the images once, to know for certain which they are before anything stored for them is used; without, large sets are known by names, sizes, dates and inodes of all files and samples of some (docs/images.md)
        seed: of the part of train that chooses a probe's strength
        report: write report.html, with maps and neighbours of every encoder
        maps: list of pca, tsne, umap: projections that the report shows; umap needs pip install 'ssl-kd[umap]'
        quiet: no progress bars
    """  # noqa: E501  the parser takes each setting's help from one line

    out: str = "runs/eval"
    tasks: list[object] = field(default_factory=list, metadata=described("", tables=TASK_TABLES, paths=True))
    encoders: list[object] = field(default_factory=list, metadata=described("", tables=ENCODER_TABLES))
    evaluators: list[object] = field(
        default_factory=lambda: ["knn", "linear"], metadata=described("", tables=EVALUATOR_TABLES)
    )
    ood: list[object] = field(default_factory=list)
    reference: str = ""
    cache: str = ""
    batch_size: int = 64
    threads: int = 2
    workers: int = 1
    index: str = ""
    device: str = "cpu"
    precision: str = "32-true"
    engine: str = "folded"
    max_unreadable: float = 0.01
    verify: bool = False
    seed: int = 0
    report: bool = True
    maps: list[str] = field(default_factory=lambda: ["pca"])
    quiet: bool = False


@dataclass(frozen=True)
class TaskConfig:
    """Where one task lies: `path`, or `train` and `test`, or `root` of a set of the literature as its archive unpacks.

    `photos` is a folder or zip without labels, judged by what needs none.
    """

    name: str = ""
    path: str = ""
    train: str = ""
    test: str = ""
    root: str = ""
    download: bool = False
    metric: str = ""
    corrupt: str = ""
    severity: int = 3
    photos: str = ""

    def __post_init__(self) -> None:
        ways = [bool(self.path), bool(self.train or self.test), bool(self.root), bool(self.photos)]
        if sum(ways) != 1 or bool(self.train) != bool(self.test):
            raise UserError(
                f"task {self.name or '?'}: give path, or train and test, or root of a known data set, or photos without labels"
            )
        if not self.name and not (self.path or self.photos):
            raise UserError(f"task: a name is needed beside {'root' if self.root else 'train and test'}")
        if self.metric not in ("", "top1", "mean_per_class"):
            raise UserError(f"task {self.title}: metric is top1 or mean_per_class, got {self.metric!r}")
        _refuse_idle(
            f"task {self.title}",
            (self.severity != TaskConfig.severity and not self.corrupt, "severity", "corrupt, which is not given"),
            (self.download and not self.root, "download", "root, which is not given"),
            (bool(self.metric and self.photos), "metric", "labels, which photos have none of"),
        )

    @property
    def title(self) -> str:
        """The name that tables show."""
        plain = self.name or Path(self.path or self.photos).stem
        return f"{plain} + {self.corrupt} {self.severity}" if self.corrupt else plain


class ByHand(TypedDict):
    """What a checkpoint does not say itself."""

    format: str | None
    branch: str | None
    arch: str | None
    arch_args: dict[str, object] | None
    mean: str | float | list[float] | None
    std: str | float | list[float] | None


@dataclass(frozen=True)
class EncoderConfig:
    """One row of the table: a checkpoint, the architecture of the row called `like` with random weights, or own features.

    `supervised` is a checkpoint as `weights` is; its row says that it was trained with labels. `path` is another word for
    `weights`, as a distillation's `teacher: {path: ...}` has it; format, branch, arch, arch_args, mean and std are
    `load_teacher`'s. `features` are banks by task: see eval/runner/own_features.py.
    """

    name: str = ""
    weights: str = ""
    supervised: str = ""
    path: str = ""
    feature: str | None = None
    format: str | None = None
    branch: str | None = None
    arch: str | None = None
    arch_args: dict[str, object] | None = None
    mean: str | float | list[float] | None = None
    std: str | float | list[float] | None = None
    size: int | None = None
    crop_ratio: float | None = None
    like: str = ""
    seed: int = 0
    features: dict[str, object] | None = None

    def __post_init__(self) -> None:
        if self.path and not self.weights:
            object.__setattr__(self, "weights", self.path)
        elif self.path:
            raise UserError(f"encoder {self.name or '?'}: path and weights are one thing; give one of them")
        if sum(map(bool, (self.weights, self.supervised, self.like, self.features))) != 1:
            raise UserError(
                f"encoder {self.name or '?'}: give either weights (a checkpoint), or supervised (one trained with labels), "
                "or like (another's name), or features (your own, by task)"
            )
        if self.features and not self.name:
            raise UserError("encoder: a name is needed beside features")
        names = ("feature", "size", "crop_ratio", *BY_HAND)
        its_own = [not self.source and getattr(self, name) is not None for name in names]
        loaded = "weights or supervised; a random row has that of the encoder it is like"
        _refuse_idle(
            f"encoder {self.title}",
            *zip(its_own, names, [loaded] * len(names), strict=True),
            (bool(self.seed) and not self.like, "seed", "like, which is not given"),
        )
        try:
            reading(self.feature, size=self.size, **self.by_hand())
        except UserError as error:
            raise UserError(f"encoder {self.title}: {error}") from error
        _check_seed(f"encoder {self.title}: seed", self.seed)
        if self.size is not None and self.size < 1:
            raise UserError(f"encoder {self.title}: size is a side in pixels, got {self.size}")
        if self.crop_ratio is not None and not 0 < self.crop_ratio <= 1:
            raise UserError(f"encoder {self.title}: crop_ratio is a share above 0 to 1, got {self.crop_ratio}")
        if self.crop_ratio is not None and self.size is None:
            raise UserError(f"encoder {self.title}: crop_ratio needs a size beside it")

    @property
    def title(self) -> str:
        """The name that tables show."""
        if self.name:
            return self.name
        if self.supervised:
            return f"supervised {Path(self.supervised).stem}"
        return Path(self.weights).stem if self.weights else f"random {self.like}"

    def by_hand(self) -> ByHand:
        """What `load_teacher` is given beside the file and its feature."""
        return {
            "format": self.format,
            "branch": self.branch,
            "arch": self.arch,
            "arch_args": self.arch_args,
            "mean": self.mean,
            "std": self.std,
        }

    @property
    def source(self) -> str:
        """The checkpoint's file or name; empty for random weights."""
        return self.weights or self.supervised


def read_config(argv: Sequence[str], prog: str = "ssl-kd eval") -> EvalConfig:
    """Return the settings of a command line whose first word may be a YAML file. UserError in one line."""
    argv = list(argv)
    if not argv:
        raise UserError(f"expected a YAML file or settings; see {prog} --help")
    if not argv[0].startswith("-"):
        argv[:1] = ["--config", argv[0]]
    config: EvalConfig = parse(EvalConfig, argv, prog, examples=EXAMPLES)
    return config


def tasks_of(config: EvalConfig) -> list[TaskConfig | Task]:
    """Return the tasks, checked: a TaskConfig each, or the Task that came from Python; a plain string is a path."""
    found = _entries(
        TaskConfig, config.tasks, "tasks", "path", lambda one: hasattr(one, "train") and hasattr(one, "name")
    )
    return [*found]  # a Task from Python among them


DAMAGES = ("noise", "blur", "jpeg")  # after which a photo should still find the neighbours that it had
STRANGE = "scramble"  # photos cut and put together anew should look strange


def damaged_photos(
    tasks: Sequence[TaskConfig | Task],
) -> tuple[list[TaskConfig], list[tuple[str, str]], list[tuple[str, str]]]:
    """Return what photos without labels are judged by besides themselves: further tasks, pairs to stay alike, and strange ones."""
    further: list[TaskConfig] = []
    alike: list[tuple[str, str]] = []
    strange: list[tuple[str, str]] = []
    known = {title_of(task) for task in tasks}
    for task in tasks:
        if not isinstance(task, TaskConfig) or not task.photos or task.corrupt:
            continue
        for kind in (*DAMAGES, STRANGE):
            hurt = replace(task, name=task.title, corrupt=kind)
            further += [] if hurt.title in known else [hurt]
            (strange if kind == STRANGE else alike).append((task.title, hurt.title))
    return further, alike, strange


def encoders_of(config: EvalConfig) -> list[EncoderConfig]:
    """Return the encoders, checked, with every `like` and the reference pointing at one; a plain string is a file."""
    entries = _entries(EncoderConfig, config.encoders, "encoders", "weights")
    names = [entry.title for entry in entries]
    files = [entry.title for entry in entries if entry.source]
    for entry in entries:
        if entry.like and entry.like not in files:
            raise UserError(f"encoder {entry.title}: like: {entry.like!r} is no encoder.{nearest(entry.like, files)}")
    if config.reference and config.reference not in names:
        raise UserError(f"reference: {config.reference!r} is no encoder here.{nearest(config.reference, names)}")
    return entries


def ood_of(config: EvalConfig) -> list[tuple[str, str]]:
    """Return the pairs of tasks for out-of-distribution detection, checked."""
    return pairs_of(config.ood, [title_of(task) for task in tasks_of(config)])


def pairs_of(given: Sequence[object], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of these names, each once. UserError for anything else."""
    pairs = []
    for i, pair in enumerate(given):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"ood[{i}]: expected [inside, outside], two tasks' names, got {pair!r}")
        for name in pair:
            one_of(f"ood[{i}]", str(name), names)
        pairs.append((str(pair[0]), str(pair[1])))
    return list(dict.fromkeys(pairs))


def title_of(task: TaskConfig | Task) -> str:
    """Return the name under which tables show a task, opened or not."""
    return str(task.title if isinstance(task, TaskConfig) else task.name)


def _entries(
    kind: type[E], given: object, what: str, short: str, as_it_is: Callable[[object], bool] = lambda one: False
) -> list[E]:
    """Return the entries of a list, built and checked; objects of which `as_it_is` says so pass."""
    if not isinstance(given, list) or not given:
        raise UserError(f"{what}: expected a list with at least one entry, got {given!r}")
    entries = [
        one if as_it_is(one) else entry_of(kind, {short: one} if isinstance(one, str) else one, f"{what}[{i}]")
        for i, one in enumerate(given)
    ]
    names = [str(getattr(entry, "title" if isinstance(entry, kind) else "name")) for entry in entries]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{what}: two entries are called {double!r}; give each a name of its own")
    return entries


def entry_of(kind: type[E], given: object, where: str) -> E:
    """Build one entry from a mapping; unknown keys and wrong types are refused with the nearest key named."""
    known = {f.name: f for f in fields(kind)}
    if not isinstance(given, dict):
        raise UserError(f"{where}: expected a mapping of {', '.join(known)}, got {given!r}")
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{where}: no setting {key!r}; known: {', '.join(known)}.{nearest(str(key), list(known))}")
        accepted = _accepted(str(known[key].type))
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            raise UserError(f"{where}.{key}: expected {known[key].type}, got {value!r}")
        assert known[key].default is not MISSING
    return kind(**given)


def _accepted(annotation: str) -> tuple[type, ...]:
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (float, int),
        "bool": (bool,),
        "None": (type(None),),
        "dict[str, object]": (dict,),
        "list[float]": (list,),
    }
    return tuple(kind for part in annotation.split(" | ") for kind in kinds[part])


def check(config: EvalConfig) -> None:
    """Raise UserError for the first plain setting that cannot be right."""
    _refuse(
        (bool(config.out), "out: expected a run folder; got nothing"),
        (bool(config.evaluators or config.ood), "evaluators: expected at least one of knn, linear"),
        (1 <= config.workers, f"workers: expected at least 1, got {config.workers}"),
        (
            config.workers == 1 or config.cache != "none",
            "workers: processes share features through the cache; drop cache: none, or take workers: 1",
        ),
        (0 <= config.max_unreadable <= 1, f"max_unreadable: expected a share from 0 to 1, got {config.max_unreadable}"),
    )
    check_settings(config)


def check_settings(given: EvalConfig | Settings) -> None:
    """Do the same for those settings that can be given from Python as well."""
    _refuse(
        (set(given.maps) <= set(MAPS), f"maps: expected some of {', '.join(MAPS)}, got {given.maps}"),
        (given.batch_size >= 1, f"batch_size: expected at least 1, got {given.batch_size}"),
        (given.threads >= 1, f"threads: expected at least 1, got {given.threads}"),
        (
            given.precision in ("32-true", "bf16-mixed"),
            f"precision: expected 32-true or bf16-mixed, got {given.precision!r}",
        ),
    )
    _check_seed("seed", given.seed)


def _check_seed(what: str, seed: int) -> None:
    _refuse((0 <= seed < SEEDS, f"{what}: expected a whole number from 0 to below 2^63, got {seed}"))


def _refuse_idle(who: str, *rules: tuple[bool, str, str]) -> None:
    """Raise UserError for the first setting that would be taken and do nothing: (it is idle, its name, what it needs)."""
    _refuse(*((not idle, f"{who}: {name} says nothing without {needed}") for idle, name, needed in rules))


def _refuse(*rules: tuple[bool, str]) -> None:
    for good, message in rules:
        if not good:
            raise UserError(message)
