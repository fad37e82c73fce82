"""Where a run's figures go besides metrics.jsonl, which is their home: a table, TensorBoard, Weights & Biases.

    log: csv                  metrics.csv beside it (the default)
    log: jsonl                nothing else
    log: csv,tensorboard      several; events in the run folder: tensorboard --logdir runs/x
    log: wandb                project ssl_kd; WANDB_PROJECT, WANDB_MODE=offline and the like are obeyed

From Python any Lightning `Logger` will do beside the names, log=["csv", MLFlowLogger()]; on the command line
`package.module:name`, which is such a logger or what makes one when it is called.

Only the standard library is imported here: the command line checks the names before anything heavy wakes.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from ssl_kd.errors import UserError, one_line, one_of
from ssl_kd.registry import Registry, load_object
from ssl_kd.runtime.files import append_line, atomically
from ssl_kd.runtime.objects import is_record, names_code
from ssl_kd.validation import setting

METRICS = "metrics.jsonl"


@dataclass
class LogSettings:
    """Logging."""

    log: str = setting(
        "csv",
        "where the figures of metrics.jsonl go as well: csv, tensorboard, wandb (several with commas), or jsonl for nowhere else",
        first=True,
        code=True,
    )
    log_every: int = setting(20, "steps between lines of metrics.jsonl", least=1)
    measure_gradients: bool = setting(False, "log each term's gradient norm at the student's features as well")


def step_of(record: Mapping[str, object]) -> int:
    """The step that a record of metrics.jsonl, or the state of a run, is of; TypeError where it is no number."""
    step = record["step"]
    if not isinstance(step, int | float):
        raise TypeError(f"step: expected a number, got {type(step).__name__}")
    return int(step)


class Log(Protocol):
    """Takes records, one per logged step: names to numbers, with `step` among them."""

    def add(self, record: Mapping[str, object]) -> None:
        """Take a record that has just been written to metrics.jsonl."""

    def close(self) -> None:
        """Write out what is still held back."""


class Table:
    """metrics.csv beside metrics.jsonl: the same records, one column per name, in the order in which names came up.

    The first record, and one with new names, has the table written anew from metrics.jsonl, without its notes in words.
    """

    def __init__(self, home: Path, first: int):
        self.home, self.path = home, home.with_suffix(".csv")
        self.columns: list[str] = []

    def add(self, record: Mapping[str, object]) -> None:
        """Add a row."""
        if self.columns and set(record) <= set(self.columns):
            append_line(self.path, self._row(record))
            return
        past = [one for one in records(self.home) if all(isinstance(value, int | float) for value in one.values())]
        self.columns = list(dict.fromkeys(name for one in past for name in one))
        rows = [_csv_line(self.columns), *map(self._row, past)]
        atomically(self.path, lambda file: file.write("".join(f"{row}\n" for row in rows).encode()))

    def _row(self, record: Mapping[str, object]) -> str:
        return _csv_line([record.get(name, "") for name in self.columns])

    def close(self) -> None:
        """Nothing is held back."""


def _csv_line(cells: Sequence[object]) -> str:
    from io import StringIO

    text = StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


class LightningLogger(Protocol):
    """What is asked of a logger of Lightning's, or of anybody else's."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take the figures of a step."""

    def finalize(self, status: str) -> None:
        """The run is over."""


class Lightning:
    """A logger of Lightning's as a `Log`."""

    def __init__(self, logger: LightningLogger):
        self.logger = logger

    def add(self, record: Mapping[str, object]) -> None:
        """Send the numbers of a record."""
        numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
        self.logger.log_metrics(numbers, step=step_of(record))

    def close(self) -> None:
        """Tell it that the run is over."""
        self.logger.finalize("success")


def _tensorboard(home: Path, first: int) -> Log:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    # purge_step: what a killed process logged about steps that are done again is hidden.
    return Lightning(TensorBoardLogger(home.parent, name="", version="tensorboard", purge_step=first))


def _wandb(home: Path, first: int) -> Log:
    from pytorch_lightning.loggers.wandb import WandbLogger

    folder = home.parent.resolve()
    # The same run folder resumes the same run there; one that was begun anew is another.
    begun = (folder / "config.yaml").stat().st_mtime_ns
    name = hashlib.sha256(f"{folder} {begun}".encode()).hexdigest()[:16]
    project = os.environ.get("WANDB_PROJECT", "ssl_kd")
    return Lightning(WandbLogger(name=folder.name, save_dir=folder, id=name, project=project))


# (path of metrics.jsonl, first step to come) -> a Log; None: nothing besides metrics.jsonl.
LOGS: Registry[Callable[[Path, int], Log] | None] = Registry(
    "log",
    {
        "jsonl": None,
        "csv": Table,
        "tensorboard": _tensorboard,
        "wandb": _wandb,
    },
    group="ssl_kd.loggers",
)
EXTRAS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}  # any of these packages will do


def names(log: str) -> list[str]:
    """The logs that a setting such as `csv,tensorboard` names, without objects (`logger_of` and `record_of` are theirs).

    UserError for an unknown one or a missing package.
    """
    parts = [name.strip() for name in log.split(",")]
    wanted = [one_of("log", name, LOGS) for name in parts if not (names_code(name) or is_record(name))]
    for name in wanted:
        if name in EXTRAS and not any(importlib.util.find_spec(package) for package in EXTRAS[name]):
            raise UserError(f"log: {name} needs a package that is not installed: pip install 'ssl-kd[{name}]'")
        LOGS[name]  # one of another package that cannot be imported is refused now
    return list(dict.fromkeys(wanted))


def logger_of(given: object) -> LightningLogger:
    """A logger given as an object or as `package.module:name`. UserError for what takes no metrics."""
    found = load_object(given, "log") if isinstance(given, str) else given
    if isinstance(given, str) and (isinstance(found, type) or not hasattr(found, "log_metrics")) and callable(found):
        found = _made(given, found)
    if not (hasattr(found, "log_metrics") and hasattr(found, "finalize")):
        raise UserError(
            f"log: expected names ({', '.join(LOGS)}) and Lightning loggers, got "
            f"{given if isinstance(given, str) else type(given).__name__}"
        )
    return cast(LightningLogger, found)  # whatever has the two methods is one


def _made(name: str, maker: Callable[[], object]) -> object:
    try:
        return maker()
    except Exception as error:  # whatever anybody's class or function raises
        raise UserError(f"log: {name} cannot be made: {type(error).__name__}: {one_line(error, 160)}") from error


def open_logs(log: str, home: Path, first: int) -> list[Log]:
    """The logs that a setting names, beside metrics.jsonl, before the record of step `first` is added to them."""
    return [make(home, first) for name in names(log) if (make := LOGS[name]) is not None]


def records(home: Path) -> Iterator[dict[str, object]]:
    """The records of metrics.jsonl; a line that a power cut tore, or a hand, is passed over."""
    with open(home, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record
