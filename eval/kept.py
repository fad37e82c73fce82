"""The whole results of an evaluation in one file: what `ssl-kd report` makes its pages from, with every test row's guess."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssl_kd.runtime.timing import Timing

from .banks import DAMAGED
from .report.projections import Look, Map, Picture
from .results import Cell, Results
from .results.latency import Latency
from .runner.cell_cache import load_arrays, packed, save_arrays, unpacked

VERSION = 1
OF_A_CELL = ("task", "encoder", "metric", "parameters", "width", "images_per_second", "programs")


def save_results(path: Path, results: Results, settings: str = "") -> None:
    """Write results and the settings that made them, atomically. UserError where it cannot be."""
    cells, arrays = [], dict[str, np.ndarray]()
    for number, cell in enumerate(results.cells):
        head, own = packed(cell.scores, f"{number}/")
        cells.append({name: getattr(cell, name) for name in OF_A_CELL} | {"scores": head})
        arrays |= own
    looks = []
    for number, look in enumerate(results.looks):
        arrays |= {f"map{number}/{i}": np.asarray(one.points) for i, one in enumerate(look.maps)}
        maps = [(one.name, one.told) for one in look.maps]
        rows = [[asdict(picture) for picture in row] for row in look.rows]
        looks.append({"task": look.task, "encoder": look.encoder, "labels": look.labels, "maps": maps, "rows": rows})
    head = {
        "version": VERSION,
        "reference": results.reference,
        "facts": dict(results.facts),
        "left_out": results.left_out,
        "curves": results.curves,
        "latencies": {name: asdict(one) for name, one in results.latencies.items()},
        "settings": settings,
        "cells": cells,
        "looks": looks,
    }
    # an evaluator from Python may keep what neither JSON nor numpy know; it is written down in words
    words = {name: one.astype(str) for name, one in arrays.items() if one.dtype == object}
    save_arrays(path, json.dumps(head, default=str), arrays | words)


def load_results(path: Path) -> tuple[Results, str] | None:
    """Return the results and settings that `save_results` wrote; None where there are none, or they are damaged."""
    found = load_arrays(path)
    if found is None:
        return None
    head, arrays = found
    try:
        if head["version"] != VERSION:
            return None
        cells = tuple(_cell(one, arrays, f"{number}/") for number, one in enumerate(head["cells"]))
        results = Results(
            cells,
            head["reference"],
            head["facts"],
            tuple(_look(one, arrays, f"map{number}/") for number, one in enumerate(head["looks"])),
            tuple(head["left_out"]),
            {name: {key: tuple(pair) for key, pair in found.items()} for name, found in head["curves"].items()},
            {name: _latency(one) for name, one in head["latencies"].items()},
        )
        return results, head["settings"]
    except DAMAGED:
        return None


def _cell(one: Mapping[str, Any], arrays: Mapping[str, np.ndarray], before: str) -> Cell:
    return Cell(scores=unpacked(one["scores"], arrays, before), **{name: one[name] for name in OF_A_CELL})


def _look(one: Mapping[str, Any], arrays: Mapping[str, np.ndarray], before: str) -> Look:
    maps = tuple(Map(name, arrays[f"{before}{i}"], told) for i, (name, told) in enumerate(one["maps"]))
    rows = tuple(tuple(Picture(**picture) for picture in row) for row in one["rows"])
    return Look(one["task"], one["encoder"], maps, tuple(one["labels"]), rows)


def _latency(one: Mapping[str, Any]) -> Latency:
    return Latency(one["device"], {int(threads): Timing(**taken) for threads, taken in one["by_threads"].items()})
