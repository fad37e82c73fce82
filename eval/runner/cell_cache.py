"""Finished cells on disk: one encoder on one task under one evaluator, kept under a key of all that decides it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from ssl_kd.runtime.files import atomically, probe

from ..banks import DAMAGED
from ..metrics import Score, Scores


class Facts(TypedDict):
    """What is known of a cell besides its scores. missing: (task, split, encoder, numbers) of images that were not there."""

    parameters: int | None
    width: int
    images_per_second: float | None
    programs: str
    seconds: NotRequired[float]
    missing: list[tuple[str, str, str, list[int]]]


def save_cell(folder: Path | None, key: str, scores: Scores, facts: Facts) -> None:
    """Write scores and facts (parameters, rate, ...) atomically; without a folder nothing is kept. UserError where it cannot be."""
    if folder is None:
        return
    head, arrays = packed(scores)
    head |= {"key": key, "facts": facts}
    save_arrays(folder / f"{key}.npz", json.dumps(head), arrays)


def packed(scores: Scores, before: str = "") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return scores as plain values and as arrays, whose names begin with `before`; `unpacked` reads them."""
    head = {
        "evaluator": scores.evaluator,
        "protocol": scores.protocol,
        "rows": [asdict(row) for row in scores.rows],
        "headline_k": scores.headline_k,
        "headline_metric": scores.headline_metric,
        "notes": scores.notes,
        "details": scores.details,
        "ks": list(scores.predicted),
        "each": list(scores.each),
    }
    arrays = {f"{before}predicted{i}": guesses for i, guesses in enumerate(scores.predicted.values())}
    arrays |= {f"{before}each{i}": values for i, values in enumerate(scores.each.values())}
    return head, arrays | {f"{before}classes": scores.classes, f"{before}labels": scores.labels}


def unpacked(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray], before: str = "") -> Scores:
    """Return the scores that `packed` wrote."""
    return Scores(
        head["evaluator"],
        head["protocol"],
        tuple(Score(**row) for row in head["rows"]),
        arrays[f"{before}classes"],
        arrays[f"{before}labels"],
        {k: arrays[f"{before}predicted{i}"] for i, k in enumerate(head["ks"])},
        head["headline_k"],
        tuple(head["notes"]),
        head["details"],
        head["headline_metric"],
        {(metric, k): arrays[f"{before}each{i}"] for i, (metric, k) in enumerate(head["each"])},
    )


def save_arrays(path: Path, head: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a JSON text and arrays into one file, atomically, with the SHA-256 of all at its end. UserError where it cannot be."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, head=np.array(head), **arrays)
    probe(path)
    whole = content.getvalue()
    atomically(path, lambda file: file.write(whole + hashlib.sha256(whole).digest()))


def load_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return what `save_arrays` wrote; None when there is nothing, or not to the byte what was written."""
    content = _whole(path)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return json.loads(str(arrays.pop("head"))), arrays
    except DAMAGED:
        return None


def _whole(path: Path) -> bytes | None:
    """Return a file's content if its last 32 bytes are the SHA-256 of all before them."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[:-32] if hashlib.sha256(content[:-32]).digest() == content[-32:] else None


def has_cell(folder: Path | None, key: str) -> bool:
    """Return whether something is kept under the key."""
    return folder is not None and (folder / f"{key}.npz").is_file()


def load_cell(folder: Path | None, key: str) -> tuple[Scores, Facts] | None:
    """Return what was kept under the key; None when there is nothing, or not to the byte what was written under it."""
    found = None if folder is None else load_arrays(folder / f"{key}.npz")
    if found is None:
        return None
    head, arrays = found
    try:
        # another cell's file under this name, or no cell of ours: computed again and written anew
        return (unpacked(head, arrays), head["facts"]) if head["key"] == key else None
    except DAMAGED:
        return None
