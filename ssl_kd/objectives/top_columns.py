"""Divergences over the columns that a row's teacher finds nearest: what a query meets first in the teacher's index.

They belong to tables that cross the two spaces (relations `cross` and `queue`), where a student's row looks at teacher
embeddings. Tables are (R, C), float32; columns that take no part hold -inf and are never among the nearest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTENING = 0.1  # beside a teacher's difference, by which D3still divides


def nearest_columns(teacher: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Similarities (R, k) to the teacher's nearest columns, from near to far, and which these are.

    k is at most `count`, and at most what takes part in the row with the fewest columns.
    """
    taking_part = int((~torch.isneginf(teacher)).sum(1).min())
    values, columns = teacher.topk(min(count, taking_part), dim=1)
    return values, columns


def top_k_kl(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float, neighbours: int) -> Tensor:
    """Mean over rows of KL(softmax(teacher / tau) || softmax(student / tau)), both over the teacher's nearest columns only.

    Source: contextual similarity distillation (CSD, CVPR 2022), read in the library of D3still's authors
    (SCY-X/D3still), with the teacher's batch for the gallery as there.
    """
    theirs, columns = nearest_columns(teacher, neighbours)
    log_p = F.log_softmax(theirs / tau_teacher, dim=1)
    log_q = F.log_softmax(student.gather(1, columns) / tau_student, dim=1)
    total: Tensor = (log_p.exp() * (log_p - log_q)).sum()
    return total / len(teacher)


def decoupled_differences(
    student: Tensor, teacher: Tensor, neighbours: int, own: float, wrong: float, right: float
) -> Tensor:
    """Differences between similarities to the teacher's nearest columns, those in the wrong order weighted apart.

    own x |t_1 - s_1| / R, the lengths over rows, where column 1 is the nearest (the image itself); then with
    d_jl = s_j - s_l and e_jl = t_j - t_l over the next k - 1 columns, each pair's error (d - e) / (0.1 + |e|): the mean
    over rows of the length of a row's errors / (k - 1), times `wrong` for pairs with d e < 0 and `right` for d e > 0.
    Source: D3still (CVPR 2024), read in SCY-X/D3still. Differs: pairs that the teacher holds for equal take no part.
    """
    theirs, columns = nearest_columns(teacher, neighbours)
    ours = student.gather(1, columns)
    total: Tensor = own * torch.linalg.vector_norm(theirs[:, 0] - ours[:, 0]) / len(teacher)
    others = theirs.shape[1] - 1
    if others < 2:
        return total
    e, d = (z[:, 1:, None] - z[:, None, 1:] for z in (theirs, ours))
    error = ((d - e) / (SOFTENING + e.abs())).flatten(1)
    order = (d * e).detach().flatten(1)
    for weight, pairs in ((wrong, order < 0), (right, order > 0)):
        lengths: Tensor = torch.linalg.vector_norm(torch.where(pairs, error, 0), dim=1)
        total = total + weight * lengths.mean() / others
    return total
