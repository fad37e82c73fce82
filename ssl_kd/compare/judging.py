"""The judging half, the only one that asks `ssl_kd.eval`: figures of finished networks on the tasks, kept as they are found.

Nothing here is asked by the half that trains, but for `score`, on a task that a config sets aside for choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_kd.compare.config import CompareConfig
from ssl_kd.compare.shelf import Shelf, key_of
from ssl_kd.errors import UserError
from ssl_kd.models.encoder import Encoder

if TYPE_CHECKING:
    from ssl_kd.eval.datasets.tasks import Task
    from ssl_kd.eval.evaluators.choices import Choice
    from ssl_kd.eval.runner.own_features import OwnFeatures

VERSION = 2  # raise it when a change of code changes figures
SCORED_BY = ("knn/dino", "linear/quick-lbfgs")  # their mean is a trial's score on a task that is set aside
TEACHER, IT = "teacher", "it"  # rows of one small evaluation


def check(config: CompareConfig) -> None:
    """Raise UserError for tasks and evaluators that cannot be right, before anything is opened."""
    from ssl_kd.eval.evaluators.choices import choices

    choices(config.evaluators)
    names = [row.title for row in _rows(config.tasks)]
    if config.tune_task:
        aside = _rows([config.tune_task])[0]
        if aside.title in names or any(_place(aside) == _place(row) for row in _rows(config.tasks)):
            raise UserError(
                f"tune_task: {aside.title} is judged as well; what is judged chooses nothing, so set another aside"
            )


def _rows(tasks: list[Any]) -> list[Any]:
    from ssl_kd.eval.runner.config import EvalConfig, tasks_of

    found: list[Any] = tasks_of(EvalConfig(tasks=tasks))
    return found


def _place(row: Any) -> tuple[str, ...]:
    return (str(row.path), str(row.train), str(row.root), str(row.name) if row.root else "")


class Judge:
    """Opened tasks and evaluators. shelf: where figures are kept, one cell per network and task."""

    def __init__(self, config: CompareConfig, shelf: Shelf, device: str = "cpu"):
        from ssl_kd.eval.datasets.prepared import evenly
        from ssl_kd.eval.evaluators.choices import choices
        from ssl_kd.eval.extraction.versions import programs
        from ssl_kd.eval.runner.build import open_task

        self.config, self.shelf, self.device = config, shelf, device
        self.wanted = choices(config.evaluators)
        self.scored_by = choices(SCORED_BY)
        opened = [open_task(row, config.max_unreadable) for row in _rows(config.tasks)]
        self.tasks = {task.name: evenly(task, config.train, config.test) for task in opened}
        self.aside: Task | None = None
        if config.tune_task:
            task = open_task(_rows([config.tune_task])[0], config.max_unreadable)
            if task.digest in {one.digest for one in opened}:
                raise UserError(f"tune_task: {task.name} holds the very images of a judged task; set another aside")
            self.aside = evenly(task, config.train, config.test)
        self.programs = programs()
        self._prepared: dict[tuple[str, str], Task] = {}
        self._own: dict[tuple[str, str], OwnFeatures] = {}

    # ---------------------------------------------------------------------------------------------------- figures

    def key(self, seen: Mapping[str, Any], task: str, teacher: Encoder) -> str:
        """The name of a network's figures on a task."""
        whole = self.tasks[task]
        paired = any(choice.row.paired for choice in self.wanted)
        beside = [teacher.digest, teacher.feature, teacher.preprocessing.key()] if paired else []
        return key_of(
            {
                "version": VERSION,
                "programs": self.programs,
                "network": [seen["digest"], seen["feature"], seen["pixels"]],
                "task": [whole.digest, whole.metric],
                "evaluators": [choice.record for choice in self.wanted],
                "teacher": beside,
            }
        )

    def figures(self, seen: Mapping[str, Any], task: str, teacher: Encoder) -> dict[str, float] | None:
        """What is kept of a network on a task, by figure; None for what is not judged yet."""
        record = self.shelf.record(self.key(seen, task, teacher))
        return None if record is None else dict(record["figures"])

    def judge(self, load: Callable[[], Encoder], seen: Mapping[str, Any], teacher: Encoder, tasks: list[str]) -> None:
        """Find and keep the figures of a network on these tasks, where they are not kept yet."""
        missing = [task for task in tasks if self.figures(seen, task, teacher) is None]
        network = load() if missing else None
        for task in missing:
            assert network is not None
            key = self.key(seen, task, teacher)
            with self.shelf.claim(key):  # judged twice, by two processes, it is judged alike
                if self.shelf.record(key) is None:
                    self.shelf.keep(
                        key, {"task": task, "figures": self._found(network, self.tasks[task], teacher, self.wanted)}
                    )

    def _found(self, network: Encoder, whole: Task, teacher: Encoder, wanted: list[Choice]) -> dict[str, float]:
        from ssl_kd.eval.results import Results
        from ssl_kd.eval.runner.cells import Bench, Settings, plan

        task = self._ready(whole, network)
        rows: dict[str, Encoder | OwnFeatures] = {IT: network}
        if any(choice.row.paired for choice in wanted):
            rows[TEACHER] = self._features(whole, teacher)
        settings = Settings(batch_size=128, threads=self.config.threads, device=self.device, quiet=True)
        bench = Bench(rows, {task.name: task}, TEACHER if TEACHER in rows else IT, settings, wanted)
        jobs, _ = plan([task], [IT], wanted)
        found: dict[str, float] = {}
        for job in jobs:
            cell = bench.cell(job)
            for row in Results((cell,)).rows:
                everything = cell.scores.evaluator in ("robustness", "fewshot")
                if everything or row["metric"] == cell.metric:
                    found[_figure(row, row["metric"] == cell.metric and not everything, bool(row["headline"]))] = row[
                        "value"
                    ]
        return found

    def _ready(self, task: Task, network: Encoder) -> Task:
        """The task's pixels as the network wants them, prepared once for all that want the same."""
        from ssl_kd.eval.datasets.prepared import prepared

        pixels = network.preprocessing
        if (pixels.resize or pixels.size) != (pixels.crop or pixels.size):
            return task
        key = (task.name, f"{pixels.size} {pixels.resize} {pixels.interpolation}")
        if key not in self._prepared:
            self._prepared[key] = prepared(task, pixels)
        return self._prepared[key]

    def _features(self, task: Task, teacher: Encoder) -> OwnFeatures:
        """The teacher's features, made once in this process and kept on disk for the others."""
        from ssl_kd.eval.runner.cells import Settings, make_banks
        from ssl_kd.eval.runner.own_features import own_features

        key = (task.name, f"{teacher.digest} {teacher.preprocessing.key()}")
        if key not in self._own:
            features = None if teacher.is_module else self.shelf.folder.parent / "features"
            settings = Settings(128, self.config.threads, self.device, quiet=True, features=features)
            train, test, _ = make_banks(TEACHER, teacher, self._ready(task, teacher), settings)
            self._own[key] = own_features(TEACHER, {task.name: (train.features, test.features)})
        return self._own[key]

    # ------------------------------------------------------------------------------------- a trial, and from scratch

    def score(self, network: Encoder, teacher: Encoder) -> float | None:
        """A trial's score on the task that is set aside: mean of k-NN and linear probe; None where there is no such task."""
        if self.aside is None:
            return None
        found = self._found(network, self.aside, teacher, self.scored_by)
        headlines = [value for name, value in found.items() if is_headline(name)]
        return sum(headlines) / len(headlines)

    def scratch(self, network: Encoder, task: str, looks: int, seed: int) -> float:
        """Train a network on a task with labels, in place; returns the seconds."""
        from ssl_kd.eval.scratch import train_from_scratch

        config, ready = self.config, self._ready(self.tasks[task], network)
        seconds: float = train_from_scratch(
            network,
            ready,
            looks,
            "strong_small",
            config.scratch_lr,
            config.batch_size,
            seed,
            self.device,
            config.threads,
        )
        return seconds


def _figure(row: Mapping[str, Any], plain: bool, headline: bool) -> str:
    """A figure's name: "knn/dino k=20", "robustness/long-tail: linear, tail 1/10"; the one that tables show ends in a star."""
    name = f"{row['evaluator']}/{row['protocol']}" + (f" k={row['k']}" if row["k"] else "")
    return name + ("" if plain else f": {row['metric']}") + (" *" if headline else "")


def is_headline(figure: str) -> bool:
    """Whether a figure is the one that its evaluator shows first."""
    return figure.endswith(" *")


def judged_folder(out: Path) -> Path:
    """Where figures are kept."""
    return out / "judged"
