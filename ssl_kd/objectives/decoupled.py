"""Divergences of class logits, on tables where prototypes take the place of classes: Hinton's KD and what came after it.

Tables are (R, K) cosines, float32. Logits are cosines / tau; `temperature` softens them as published, and its square
multiplies the value, so that gradients keep their size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softened_kl(student: Tensor, teacher: Tensor, tau: float, temperature: float) -> Tensor:
    """T^2 x mean over rows of KL(softmax(teacher / (tau T)) || softmax(student / (tau T))).

    Source: Hinton et al. 2015, read in mdistiller; prototypes for classes, and no cross-entropy on labels beside it.
    """
    log_q, log_p = (F.log_softmax(z / (tau * temperature), dim=1) for z in (student, teacher))
    return temperature**2 * _kl(log_q, log_p)


def decoupled_kl(
    student: Tensor, teacher: Tensor, tau: float, temperature: float, target: float, others: float
) -> Tensor:
    """T^2 (target x KL of (p_y, 1 - p_y) + others x KL of what is renormalised without y), y the teacher's nearest column.

    Source: DKD (CVPR 2022), read in mdistiller. Differs: the teacher's nearest prototype is the target.
    """
    zs, zt = (z / (tau * temperature) for z in (student, teacher))
    log_q, log_p = F.log_softmax(zs, dim=1), F.log_softmax(zt, dim=1)
    y = teacher.argmax(1, keepdim=True)
    rest_q, rest_p = (z.scatter(1, y, -torch.inf) for z in (log_q, log_p))
    pair_q, pair_p = (
        torch.cat([z.gather(1, y), rest.logsumexp(1, keepdim=True)], dim=1)
        for z, rest in ((log_q, rest_q), (log_p, rest_p))
    )
    off_q, off_p = (F.log_softmax(rest, dim=1) for rest in (rest_q, rest_p))
    return temperature**2 * (target * _kl(pair_q, pair_p) + others * _kl(off_q, off_p))


def class_level(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """MSE of unit rows + MSE of unit columns + |difference of the columns' covariances|_F / K^2, of logits = cosines / tau.

    Source: CLKD (2211.14773), read in a third party's code, with prototypes for classes. Differs: covariances are divided by
    R - 1, there by K - 1.
    """
    s, t = (torch.where(torch.isneginf(teacher), 0, z / tau) for z in (student, teacher))
    rows = F.mse_loss(F.normalize(s, dim=1), F.normalize(t, dim=1))
    columns = F.mse_loss(F.normalize(s, dim=0), F.normalize(t, dim=0))
    gap: Tensor = torch.linalg.vector_norm(_covariance(s) - _covariance(t))
    return rows + columns + gap / s.shape[1] ** 2


def _covariance(z: Tensor) -> Tensor:
    z = z - z.mean(0)
    return z.T @ z / max(len(z) - 1, 1)


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Mean over rows of KL(p || q); what is impossible for p takes no part."""
    gap = (log_p - log_q).masked_fill(torch.isneginf(log_p), 0)
    total: Tensor = (log_p.exp() * gap).sum()
    return total / len(log_p)
