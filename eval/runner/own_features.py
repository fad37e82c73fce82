"""Features that somebody else made, as a row of the table beside encoders.

    encoders = {"teacher": encoder, "mine": {"flowers": (train, test)}}     # arrays, banks or files, in the task's order
    - {name: mine, features: {flowers: {train: train.npz, test: test.npz}}}  # the same in a configuration
    - {name: mine, features: {flowers: flowers.npz}}   # one file, ids as train/<class>/<file>: `ssl-kd embed` of the whole

Labels are always the task's, so that rows of the table are compared on the same images. A bank with ids is put in order
by them and may lack images (they are counted in the notes); one without has a row for each image, in the task's order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.errors import UserError, nearest

from ..banks import FeatureBank, as_array, blocks, load_bank
from ..datasets.tasks import TEST_FOLDERS

if TYPE_CHECKING:
    from ..datasets.tasks import Split, Task

Pair = tuple[FeatureBank, FeatureBank]


@dataclass(frozen=True, eq=False)
class OwnFeatures:
    """The banks (train, test) of one row, by task."""

    name: str
    banks: Mapping[str, Pair]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hexadecimal name of all features and ids, by task."""
        parts = {task: "".join(map(_digest, pair)) for task, pair in self.banks.items()}
        return {task: hashlib.sha256(both.encode()).hexdigest() for task, both in parts.items()}

    def digest(self, task: str) -> str:
        """Return that of one task. UserError where there are no features of it."""
        self._known(task)
        return self.digests[task]

    def of(self, task: Task) -> Pair:
        """Return the task's banks with the task's labels. UserError where they do not belong to its images."""
        self._known(task.name)
        train, test = self.banks[task.name]
        where, key = f"{self.name}, {task.name}", self.digests[task.name][:16]
        return (
            _in_order(train, task.train, f"{where}, train", f"{key} train"),
            _in_order(test, task.test, f"{where}, test", f"{key} test"),
        )

    def _known(self, task: str) -> None:
        if task not in self.banks:
            known = list(self.banks)
            raise UserError(
                f"{self.name}: no features of task {task!r}, only of {', '.join(known)}.{nearest(task, known)}"
            )


def own_features(name: str, features: object) -> OwnFeatures:
    """Build a row from what was given: task -> (train, test), {train, test}, or one file or bank of both by its ids."""
    if not isinstance(features, Mapping) or not features:
        raise UserError(f"{name}: features: expected a mapping of tasks to files or arrays, got {features!r}")
    return OwnFeatures(name, {str(task): _pair(given, f"{name}, {task}") for task, given in features.items()})


def _pair(given: object, where: str) -> Pair:
    if isinstance(given, Mapping):
        if set(given) != {"train", "test"}:
            raise UserError(f"{where}: expected train and test, got {', '.join(map(str, given)) or 'nothing'}")
        given = (given["train"], given["test"])
    if isinstance(given, tuple | list):
        if len(given) != 2:
            raise UserError(f"{where}: expected a train and a test bank, got {len(given)} parts")
        return _bank(given[0], f"{where}, train"), _bank(given[1], f"{where}, test")
    return _split(_bank(given, where), where)


def _bank(given: object, where: str) -> FeatureBank:
    if isinstance(given, FeatureBank):
        return given
    if isinstance(given, str | PathLike):
        return load_bank(Path(given))
    try:
        return FeatureBank(as_array("features", given))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _split(whole: FeatureBank, where: str) -> Pair:
    """Cut a bank by the first folder of its ids."""
    firsts = np.array([str(name).partition("/")[0] for name in whole.ids])
    known = np.isin(firsts, ("train", *TEST_FOLDERS))
    if not len(firsts) or not known.all():
        odd = whole.ids[int(np.flatnonzero(~known)[0])] if len(firsts) else "no ids"
        raise UserError(
            f"{where}: one bank for both splits needs ids such as train/cat/1.jpg and test/cat/2.jpg, got {odd}"
        )
    parts = [whole.rows(where) for where in (firsts == "train", firsts != "train")]
    train, test = (replace(part, ids=[str(name).partition("/")[2] for name in part.ids]) for part in parts)
    return train, test


def _in_order(bank: FeatureBank, split: Split, where: str, key: str) -> FeatureBank:
    """Return the bank with the split's labels, its rows in the split's order."""
    names, labels = [str(name) for name in split.images.ids], np.asarray(split.labels)
    if not len(bank.ids):
        if len(bank) != len(names):
            raise UserError(
                f"{where}: {len(bank)} rows for {len(names)} images; give one row per image, or ids beside them"
            )
        kept = order = np.arange(len(names))
    else:
        kept, order = _matched([str(name) for name in bank.ids], names, where)
    _check_labels(bank, order, labels[kept], where)
    whole = np.array_equal(order, np.arange(len(bank)))
    features = bank.features if whole else np.asarray(bank.features[order])
    return FeatureBank(features, labels[kept], [names[i] for i in kept.tolist()], key)


def _matched(ids: list[str], names: list[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the images that have a row, and those rows. UserError for a row of no image, or two of one."""
    rows, known = {name: i for i, name in enumerate(ids)}, set(names)
    if strange := next((name for name in ids if name not in known), ""):
        raise UserError(f"{where}: {strange!r} is no image of the task, whose first is {names[0]!r}")
    if len(rows) < len(ids):
        raise UserError(f"{where}: {len(ids) - len(rows)} ids stand there twice; give one row per image")
    kept = [i for i, name in enumerate(names) if name in rows]
    return np.array(kept, np.int64), np.array([rows[names[i]] for i in kept], np.int64)


def _check_labels(bank: FeatureBank, order: np.ndarray, labels: np.ndarray, where: str) -> None:
    """UserError where a bank's own labels tell classes apart otherwise than the task does, under whatever names."""
    if bank.labels is None or labels.ndim != 1 or np.ndim(bank.labels) != 1:
        return
    own = np.asarray(bank.labels)[order].astype(str).tolist()
    pairs = set(zip(own, labels.astype(str).tolist(), strict=True))
    if not len(pairs) == len({mine for mine, _ in pairs}) == len({theirs for _, theirs in pairs}):
        raise UserError(f"{where}: its labels are not the task's; put its rows in the task's order, or give ids")


def _digest(bank: FeatureBank) -> str:
    total = hashlib.sha256(f"{bank.features.dtype} {bank.features.shape}".encode())
    for part in blocks(len(bank)):
        total.update(np.ascontiguousarray(bank.features[part]).data)
    total.update("\n".join(map(str, bank.ids)).encode(errors="surrogatepass"))
    return total.hexdigest()
