"""Heads between the student's width and the teacher's. They are trained with the student; one is kept, see `into_teacher`.

Head capacity beats the choice of the loss (see docs/objectives): a linear head loses several points to a deep one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ssl_kd.errors import UserError, one_of
from ssl_kd.registry import Registry


def _identity(ds: int, dt: int) -> nn.Module:
    """No head: for tables that compare each network with itself."""
    return nn.Identity()


def _linear(ds: int, dt: int) -> nn.Module:
    """Linear Ds -> Dt (CompRess-1q, LightlyTrain v1)."""
    return nn.Linear(ds, dt)


def _bn(ds: int, dt: int) -> nn.Module:
    """Linear Ds -> Dt, batch norm."""
    return nn.Sequential(nn.Linear(ds, dt), nn.BatchNorm1d(dt))


def _mlp(ds: int, dt: int) -> nn.Module:
    """Linear Ds -> 2 Dt, batch norm, ReLU, Linear -> Dt."""
    return nn.Sequential(nn.Linear(ds, 2 * dt), nn.BatchNorm1d(2 * dt), nn.ReLU(inplace=True), nn.Linear(2 * dt, dt))


def _simreg(ds: int, dt: int) -> nn.Module:
    """Ds -> 2 Ds -> Ds -> 2 Ds -> Dt; batch norm and ReLU after the first and the third linear only.

    Source: SimReg's published code (Navaneet et al., BMVC 2021).
    """
    return nn.Sequential(
        nn.Linear(ds, 2 * ds),
        nn.BatchNorm1d(2 * ds),
        nn.ReLU(inplace=True),
        nn.Linear(2 * ds, ds),
        nn.Linear(ds, 2 * ds),
        nn.BatchNorm1d(2 * ds),
        nn.ReLU(inplace=True),
        nn.Linear(2 * ds, dt),
    )


def _dlkd(ds: int, dt: int) -> nn.Module:
    """Linear Ds -> 16 Dt, batch norm, ReLU, Linear -> Dt: DLKD's alignment head, as published (large: 84 M for R50)."""
    wide = 16 * dt
    return nn.Sequential(nn.Linear(ds, wide), nn.BatchNorm1d(wide), nn.ReLU(inplace=True), nn.Linear(wide, dt))


def _square(ds: int, dt: int) -> nn.Module:
    """Linear Ds -> Ds, batch norm, ReLU, Linear -> Ds: DLKD's correlation head; the teacher's width plays no part."""
    return nn.Sequential(nn.Linear(ds, ds), nn.BatchNorm1d(ds), nn.ReLU(inplace=True), nn.Linear(ds, ds))


def _layernorm(ds: int, dt: int) -> nn.Module:
    """LayerNorm, Linear Ds -> Dt (Proteus)."""
    return nn.Sequential(nn.LayerNorm(ds), nn.Linear(ds, dt))


def _seed(ds: int, dt: int) -> nn.Module:
    """Linear Ds -> Ds, ReLU, Linear -> Dt; no batch norm (SEED's student head, MoCo v2's shape)."""
    return nn.Sequential(nn.Linear(ds, ds), nn.ReLU(inplace=True), nn.Linear(ds, dt))


def _vid(ds: int, dt: int) -> nn.Module:
    """Linear Ds -> Dt, ReLU, Dt -> Dt, ReLU, Dt -> Dt, none with a bias (VID's regressor, on cells its 1 x 1 convolutions)."""
    first, second, last = (nn.Linear(width, dt, bias=False) for width in (ds, dt, dt))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


PROJECTORS: Registry[Callable[[int, int], nn.Module]] = Registry(
    "projectors",
    {
        "identity": _identity,
        "linear": _linear,
        "bn": _bn,
        "mlp": _mlp,
        "simreg": _simreg,
        "dlkd": _dlkd,
        "square": _square,
        "layernorm": _layernorm,
        "seed": _seed,
        "vid": _vid,
    },
    group="ssl_kd.projectors",
)

KEEPS_WIDTH = ("identity", "square")  # these end at the student's width, whatever the teacher's


def projector(name: str, student_dim: int, teacher_dim: int) -> nn.Module:
    """Build a head by name: (N, Ds) -> (N, Dt), but for `identity` and `square`, which stay at Ds."""
    return PROJECTORS[one_of("projector", name, PROJECTORS)](student_dim, teacher_dim)


def width_after(name: str, student_dim: int, teacher_dim: int) -> int:
    """What comes out of that head."""
    return student_dim if name in KEEPS_WIDTH else teacher_dim


def over_rows(head: nn.Module, z: Tensor) -> Tensor:
    """A head applied to the last axis of (..., Ds): tokens count as rows, also for batch norm."""
    out: Tensor = head(z if z.ndim == 2 else z.flatten(0, -2))
    return out if z.ndim == 2 else out.reshape(*z.shape[:-1], out.shape[-1])


def must_reach(name: str, student_dim: int, teacher_dim: int) -> None:
    """UserError where a head keeps the student's width but the teacher's is needed."""
    if name in KEEPS_WIDTH and student_dim != teacher_dim:
        raise UserError(
            f"objective: it compares the student with the teacher: projector {name!r} keeps the student's "
            f"width {student_dim}, but the teacher's is {teacher_dim}; use linear, mlp or simreg"
        )
