"""Prototypes: K anchors in the teacher's space that stand where classes would, fixed, or made anew now and then.

    relation = Prototypes(1024)
    relation.lay(spherical_kmeans(teacher_embeddings, 1024, seed=0))
    term = Correlation(384, 512, relation=relation, divergence=Softened(tau=0.025, temperature=4))

A run of `ssl_kd.distill` makes them by itself, from the teacher's outputs on the unlabelled images.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kd.errors import UserError
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.relations import Relation, Tables, unit
from ssl_kd.types import ViewBatch

ITERATIONS = 20
ROWS_EACH = 256  # rows that are looked at for each prototype: more move the means by little
MOST = 65536
ROUNDS = 10  # of filling empty clusters; one is the rule


class Prototypes(Relation):
    """Cosines to K anchors in the teacher's space: the student's, projected to the teacher's width, and the teacher's own.

    The anchors, K x Dt float32, are part of the saved state. refresh: a run lays new ones at the beginning of every so many
    epochs, from that epoch's views and by another seed; 0: never. UserError in training where none were laid.
    """

    needs_teacher_width = True
    divisible = True
    anchors: Tensor
    laid: Tensor

    def __init__(self, prototypes: int = 1024, refresh: int = 0):
        super().__init__()
        if not 2 <= prototypes <= MOST:
            raise UserError(f"prototypes: expected 2 to {MOST:,} of them, got {prototypes}")
        self.prototypes, self.refresh = prototypes, refresh

    def fit(self, student: Widths, teacher: Widths) -> None:
        """Room for the anchors, which have the teacher's width."""
        self.register_buffer("anchors", torch.zeros(self.prototypes, teacher.embedding))
        self.register_buffer("laid", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def lay(self, anchors: Tensor) -> None:
        """Take these anchors (K, Dt); lengths play no part. UserError for another shape, or a row of no direction."""
        if anchors.shape != self.anchors.shape or not bool((anchors.norm(dim=1) > 0).all()):
            raise UserError(
                f"prototypes: expected {tuple(self.anchors.shape)} numbers with no row of zeros, got {tuple(anchors.shape)}"
            )
        self.anchors.copy_(F.normalize(anchors.float(), dim=1))
        self.laid.fill_(1)

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Dt), (N, Dt) -> two (N, K) tables; (N, 0) before the anchors are laid, which training refuses."""
        if not int(self.laid):
            if self.training:
                raise UserError("prototypes: none were laid; call lay(spherical_kmeans(teacher_embeddings, K)) first")
            return s[:, :0], t[:, :0]
        return unit(s) @ self.anchors.T, unit(t) @ self.anchors.T


def spherical_kmeans(rows: Tensor, count: int, seed: int = 0) -> Tensor:
    """(K, D) unit means of the directions of `rows` (N, D), by faiss' spherical k-means, float32 on the CPU.

    No cluster is empty: a mean that nobody is nearest to gives way to the row that is farthest from its own mean.
    UserError for fewer rows than prototypes, and where faiss is missing.
    """
    if len(rows) < count:
        raise UserError(f"prototypes: {len(rows):,} images cannot have {count:,} prototypes; ask for fewer")
    try:
        import faiss
    except ImportError:
        raise UserError("prototypes: k-means needs faiss: pip install faiss-cpu") from None
    unit_rows = np.ascontiguousarray(F.normalize(rows.detach().float(), dim=1).cpu().numpy())
    means = faiss.Kmeans(
        unit_rows.shape[1],
        count,
        niter=ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=ROWS_EACH,
    )
    means.train(unit_rows)
    return torch.from_numpy(_without_empty(np.array(means.centroids), unit_rows))


def _without_empty(centroids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Empty clusters filled, each by the farthest row of another one; not where rows are copies of too few."""
    import faiss

    for _ in range(ROUNDS):
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(centroids)
        cosines, nearest = (found[:, 0] for found in index.search(rows, 1))
        empty = np.setdiff1d(np.arange(len(centroids)), nearest)
        if not len(empty):
            break
        by_distance = np.argsort(cosines, kind="stable")
        farthest = by_distance[np.sort(np.unique(nearest[by_distance], return_index=True)[1])]  # one of each cluster
        centroids[empty[: len(farthest)]] = rows[farthest[: len(empty)]]
    return centroids
