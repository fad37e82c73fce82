"""What the student is asked to do: alignment and correlation with a frozen teacher, never labels.

Everything here works in anybody's training loop, on plain (B, D) tensors, and needs nothing but torch:

    from ssl_kd.objectives import Alignment, Correlation, MemoryBank, SoftmaxKL

    align = Alignment(384, 512)
    relate = Correlation(384, 512, relation=MemoryBank(8192), divergence=SoftmaxKL(0.07))
    loss = align(student_embedding, teacher_embedding) + relate(student_embedding, teacher_embedding)
"""

from ssl_kd.objectives.alignment import DISTANCES, Alignment
from ssl_kd.objectives.auxiliary import HardPairs, Residual, Uncertainty
from ssl_kd.objectives.boundary import Boundary
from ssl_kd.objectives.compression import Compressed
from ssl_kd.objectives.correlation import RELATIONS, Correlation
from ssl_kd.objectives.divergences import (
    DIVERGENCES,
    ClassLevel,
    Decoupled,
    Differences,
    Divergence,
    NearestNeighbours,
    RowsAndColumns,
    Softened,
    SoftmaxKL,
    SoftRank,
    TargetRatio,
    TopK,
)
from ssl_kd.objectives.factory import PRESETS, TERMS, build_objective, taps
from ssl_kd.objectives.information import RenyiCorrelation, RenyiMutual, Variational
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.ladder import Ladder
from ssl_kd.objectives.maps import Factors, Selectivity
from ssl_kd.objectives.masked import MaskedHead, MaskedTokens
from ssl_kd.objectives.memory_bank import MemoryBank, TwoMemoryBanks
from ssl_kd.objectives.multi_teacher import MultiTeacher, build_several
from ssl_kd.objectives.progression import Progression
from ssl_kd.objectives.projectors import PROJECTORS, projector
from ssl_kd.objectives.prototypes import Prototypes, spherical_kmeans
from ssl_kd.objectives.relations import Relation
from ssl_kd.objectives.target_norms import TARGET_NORMS, Centre, PhiS, Standardise, Whiten
from ssl_kd.objectives.term import Term
from ssl_kd.objectives.weighted_sum import Weight, WeightedSum
from ssl_kd.types import Criterion, Features, ViewBatch

__all__ = [
    "DISTANCES",
    "DIVERGENCES",
    "PRESETS",
    "PROJECTORS",
    "RELATIONS",
    "TARGET_NORMS",
    "TERMS",
    "Alignment",
    "Boundary",
    "Centre",
    "ClassLevel",
    "Compressed",
    "Correlation",
    "Criterion",
    "Decoupled",
    "Differences",
    "Divergence",
    "Factors",
    "Features",
    "HardPairs",
    "Ladder",
    "MaskedHead",
    "MaskedTokens",
    "MemoryBank",
    "MultiTeacher",
    "NearestNeighbours",
    "PhiS",
    "Progression",
    "Prototypes",
    "Relation",
    "RenyiCorrelation",
    "RenyiMutual",
    "Residual",
    "RowsAndColumns",
    "Selectivity",
    "SoftRank",
    "Softened",
    "SoftmaxKL",
    "Standardise",
    "TargetRatio",
    "Term",
    "TopK",
    "TwoMemoryBanks",
    "Uncertainty",
    "Variational",
    "ViewBatch",
    "Weight",
    "WeightedSum",
    "Whiten",
    "Widths",
    "build_objective",
    "build_several",
    "projector",
    "spherical_kmeans",
    "taps",
]
