"""Where a run's figures go besides metrics.jsonl, which is their home: a table, TensorBoard, Weights & Biases.

    log: csv                  metrics.csv beside it (the default)
    log: jsonl                nothing else
    log: csv,tensorboard      several; events in the run folder: tensorboard --logdir runs/x
    log: wandb                project ssl_kd; WANDB_PROJECT, WANDB_MODE=offline and the like are obeyed

Only the standard library is imported here: the command line checks the names before anything heavy wakes.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ssl_kd.errors import UserError, one_of
from ssl_kd.runtime.files import append_line, atomically

METRICS = "metrics.jsonl"


class Log(Protocol):
    """Takes records, one per logged step: names to numbers, with `step` among them."""

    def add(self, record: Mapping[str, Any]) -> None:
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

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a row."""
        if self.columns and set(record) <= set(self.columns):
            append_line(self.path, self._row(record))
            return
        past = [one for one in records(self.home) if all(isinstance(value, int | float) for value in one.values())]
        self.columns = list(dict.fromkeys(name for one in past for name in one))
        rows = [_csv_line(self.columns), *map(self._row, past)]
        atomically(self.path, lambda file: file.write("".join(f"{row}\n" for row in rows).encode()))

    def _row(self, record: Mapping[str, Any]) -> str:
        return _csv_line([record.get(name, "") for name in self.columns])

    def close(self) -> None:
        """Nothing is held back."""


def _csv_line(cells: list[Any]) -> str:
    from io import StringIO

    text = StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


class Lightning:
    """A logger of Lightning's behind our face."""

    def __init__(self, logger: Any):
        self.logger = logger

    def add(self, record: Mapping[str, Any]) -> None:
        """Send the numbers of a record."""
        numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
        self.logger.log_metrics(numbers, step=int(record["step"]))

    def close(self) -> None:
        """Say that the run is over."""
        self.logger.finalize("success")


def _tensorboard(home: Path, first: int) -> Log:
    from lightning_fabric.loggers import TensorBoardLogger

    # purge_step: what a killed process said about steps that are done again is hidden.
    return Lightning(TensorBoardLogger(home.parent, name="", version="tensorboard", purge_step=first))


def _wandb(home: Path, first: int) -> Log:
    from pytorch_lightning.loggers import WandbLogger

    folder = home.parent.resolve()
    # The same run folder goes on with the same run there; one that was begun anew is another.
    begun = (folder / "config.yaml").stat().st_mtime_ns
    name = hashlib.sha256(f"{folder} {begun}".encode()).hexdigest()[:16]
    project = os.environ.get("WANDB_PROJECT", "ssl_kd")
    return Lightning(WandbLogger(name=folder.name, save_dir=folder, id=name, project=project))


LOGS: dict[str, Callable[[Path, int], Log] | None] = {
    "jsonl": None,
    "csv": Table,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
EXTRAS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}  # any of these packages will do


def names(log: str) -> list[str]:
    """The logs that a setting such as `csv,tensorboard` names. UserError for an unknown one or a missing package."""
    wanted = [one_of("log", name.strip(), LOGS) for name in log.split(",")]
    for name in wanted:
        if name in EXTRAS and not any(importlib.util.find_spec(package) for package in EXTRAS[name]):
            raise UserError(f"log: {name} needs a package that is not installed: pip install 'ssl-kd[{name}]'")
    return list(dict.fromkeys(wanted))


def open_logs(log: str, home: Path, first: int) -> list[Log]:
    """The logs of a setting, beside metrics.jsonl, before the record of step `first` is added to them."""
    return [make(home, first) for name in names(log) if (make := LOGS[name]) is not None]


def records(home: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl; a line that a power cut tore, or a hand, is passed over."""
    with open(home, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record
