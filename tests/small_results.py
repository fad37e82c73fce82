"""Made-up results of an evaluation, for the tests of its report."""

import numpy as np

from ssl_kd.eval.metrics import Scores, figures
from ssl_kd.eval.report.projections import Look, Map, Picture
from ssl_kd.eval.results import Cell, Results
from ssl_kd.eval.results.latency import Latency
from ssl_kd.runtime.timing import Timing


def cell(encoder, right, evaluator="knn", seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 80)
    guess = np.where(rng.random(80) < right, labels, (labels + 1) % 4)
    k = 20 if evaluator == "knn" else None
    classes = np.array(["cat", "dog", "<emu>", "fox & co"])
    details = {"sweep": [{"strength": s, "top1": 0.5, "converged": s > 1} for s in (1.0, 10.0)], "strength": 10.0}
    scores = Scores(
        evaluator,
        "dino" if k else "quick-lbfgs",
        tuple(figures(labels, guess[:, None], 4, k)),
        classes,
        labels,
        {k: guess},
        k,
        ("a <note>",),
        {} if k else details,
    )
    return Cell("pets & co", encoder, "top1", scores, 1000 if encoder == "student" else 25_000_000, 8, 123.4)


def results():
    cells = [
        cell(name, right, kind) for name, right in (("teacher", 0.9), ("student", 0.8)) for kind in ("knn", "linear")
    ]
    curves = {
        "student": {
            "loss": ([1.0, 2.0, 3.0], [3.0, 2.0, 1.5]),
            "align": ([1.0, 2.0, 3.0], [2.0, 1.0, 0.5]),
            "health/overlap": ([1.0, 3.0], [0.1, 0.4]),
            "health/chance_overlap": ([1.0, 3.0], [0.02, 0.02]),
            "health/teacher_overlap": ([1.0, 3.0], [0.9, 0.9]),
            "health/collapsed": ([1.0, 3.0], [1.0, 0.0]),
        }
    }
    latencies = {
        name: Latency(
            "cpu", {threads: Timing(t / threads, 0.9 * t / threads, 1.2 * t / threads, 15) for threads in (1, 2)}
        )
        for name, t in (("teacher", 0.012), ("student", 0.003))
    }
    return Results(tuple(cells), "teacher", {"programs": "torch 2"}, looks(), ("voc x knn",), curves, latencies)


def looks():
    url = "data:image/jpeg;base64,AAAA"
    row = (Picture(url, "cat"), Picture(url, "cat", True), Picture(url, "dog", False))
    points = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    labels = tuple(f"class {i % 9}" for i in range(20))
    maps = (Map("PCA", points, "two components"), Map("t-SNE", -points, "t-SNE"))
    return tuple(Look("pets & co", name, maps, labels, (row,)) for name in ("teacher", "student"))
