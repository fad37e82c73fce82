"""Which protocol of `ssl-kd eval` a published figure belongs to, so that our evaluators can be checked against it.

Only where an evaluator here repeats the lab's own script is a protocol named. k-NN needs no training, so its figure should
come out within the interval; the labs' linear probes are trained on random crops, ours on stored features.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssl_kd.checkpoints.zoo_entry import Entry

KNN = {"DINO": "knn/dino", "iBOT": "knn/dino", "DINOv2": "knn/dinov2"}
LINEAR = {
    "DINO": "linear/dino-linear",
    "iBOT": "linear/dino-linear",
    "DINOv2": "linear/dinov2-sweep",
    "MoCo v1": "linear/moco-linear",
    "MoCo v2": "linear/moco-linear",
}


@dataclass(frozen=True)
class Published:
    """A figure in percent, the evaluator that repeats it, and the feature that it is of (None: the file's own)."""

    kind: str  # "knn" or "linear"
    figure: float
    evaluator: str
    feature: str | None = None


def published(entry: Entry) -> tuple[Published, ...]:
    """The entry's figures that a protocol here repeats; k-NN first."""
    lightly = entry.name.startswith("lightly_")
    found = []
    knn = "knn/lightly" if lightly else KNN.get(entry.method)
    if entry.knn is not None and knn:
        found.append(Published("knn", entry.knn, knn))
    linear = None if lightly or entry.name.startswith("vissl_") else LINEAR.get(entry.method)
    if entry.linear is not None and linear:
        found.append(Published("linear", entry.linear, linear, _probed(entry)))
    return tuple(found)


def _probed(entry: Entry) -> str | None:
    """The feature of the lab's linear probe."""
    if entry.method == "DINOv2":
        return "cls_avg"
    if entry.method in ("DINO", "iBOT") and entry.network.startswith("ViT"):
        return "cls4" if entry.network.startswith("ViT-S") else "cls_avg"
    return None


def commands(entry: Entry) -> str:
    """The commands that check the figures, in one line; why there is none otherwise."""
    found = published(entry)
    if not found:
        return "no evaluator here repeats a published figure of it"
    lines = []
    for one in found:
        kind = "" if one is found[0] else f" --kind {one.kind}"
        feature = f", feature {one.feature}" if one.feature else ""
        lines.append(
            f"ssl-kd eval --selfcheck {entry.name} --imagenet FOLDER{kind} ({one.evaluator}{feature}: {one.figure})"
        )
    return "; ".join(lines)
