"""Finished cells on disk: one encoder on one task under one evaluator, kept under a key of all that decides it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

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
    head = {
        "key": key,
        "evaluator": scores.evaluator,
        "protocol": scores.protocol,
        "rows": [asdict(row) for row in scores.rows],
        "headline_k": scores.headline_k,
        "headline_metric": scores.headline_metric,
        "notes": scores.notes,
        "details": scores.details,
        "facts": facts,
        "ks": list(scores.predicted),
        "each": list(scores.each),
    }
    arrays = {f"predicted{i}": guesses for i, guesses in enumerate(scores.predicted.values())}
    arrays |= {f"each{i}": values for i, values in enumerate(scores.each.values())}
    arrays |= {"head": np.array(json.dumps(head)), "classes": scores.classes, "labels": scores.labels}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    path = folder / f"{key}.npz"
    probe(path)
    whole = content.getvalue()
    atomically(path, lambda file: file.write(whole + hashlib.sha256(whole).digest()))


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
    content = None if folder is None else _whole(folder / f"{key}.npz")
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            head = json.loads(str(stored["head"]))
            if head["key"] != key:
                return None  # another cell's file under this name
            predicted = {k: stored[f"predicted{i}"] for i, k in enumerate(head["ks"])}
            each = {(metric, k): stored[f"each{i}"] for i, (metric, k) in enumerate(head["each"])}
            arrays = stored["classes"], stored["labels"]
    except DAMAGED:
        return None  # no cell of ours: computed again and written anew
    scores = Scores(
        head["evaluator"],
        head["protocol"],
        tuple(Score(**row) for row in head["rows"]),
        *arrays,
        predicted,
        head["headline_k"],
        tuple(head["notes"]),
        head["details"],
        head["headline_metric"],
        each,
    )
    return scores, head["facts"]
