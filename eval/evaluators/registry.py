"""The evaluators that a configuration can name: `kind` or `kind/protocol`. A new one is a row here and a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ssl_kd.errors import UserError
from ssl_kd.registry import Registry

from ..banks import FeatureBank
from ..metrics import Scores

if TYPE_CHECKING:
    from ..solvers.sgd import SGDProtocol
    from .few_shot import FewShotProtocol
    from .knn import KNNProtocol
    from .linear_probe import LinearProtocol
    from .retrieval import RetrievalProtocol
    from .robustness import Damage


@dataclass(frozen=True)
class Given:
    """What an evaluator may be told besides its protocol; each takes what it needs.

    metric: the task's. folder: where it may keep what other evaluations can use, None for nowhere.
    """

    metric: str
    seed: int
    device: str
    quiet: bool
    folder: Path | None


@dataclass(frozen=True)
class Kind:
    """How an evaluator is made.

    `find` gives a protocol by name, with all its constants. `make(protocol, given)` gives the evaluator: a call on train
    and test bank, and for a `paired` one on the reference's two banks after them. `several`, where images of several classes can be judged,
    finds the protocol for them. `labels`: whether it needs any.
    """

    default: str
    find: Callable[..., object]
    make: Callable[..., Callable[..., Scores]]
    paired: bool = False
    several: Callable[..., object] | None = None
    labels: bool = True


def _knn_protocol(name: str) -> KNNProtocol:
    from .knn import knn_protocol

    return knn_protocol(name)


def _knn(protocol: KNNProtocol, given: Given) -> Callable[..., Scores]:
    from .knn import KNN

    return KNN(protocol, quiet=given.quiet)


def _linear_protocol(name: str) -> LinearProtocol | SGDProtocol:
    from .linear_probe import linear_protocol

    return linear_protocol(name)


def _linear(protocol: LinearProtocol | SGDProtocol, given: Given) -> Callable[..., Scores]:
    from .linear_probe import LinearProbe
    from .multilabel import MultiLabelProbe

    if given.metric == "map11":
        return MultiLabelProbe(cast("LinearProtocol", protocol), given.seed, given.device, given.quiet)
    return LinearProbe(protocol, metric=given.metric, seed=given.seed, device=given.device, quiet=given.quiet)


def _multilabel_protocol(name: str) -> LinearProtocol:
    from .multilabel import multilabel_protocol

    return multilabel_protocol(name)


def _retrieval_protocol(name: str) -> RetrievalProtocol:
    from .retrieval import retrieval_protocol

    return retrieval_protocol(name)


def _retrieval(protocol: RetrievalProtocol, given: Given) -> Callable[..., Scores]:
    from .retrieval import Retrieval

    return Retrieval(protocol, given.quiet, given.folder)


def _asymmetric(protocol: RetrievalProtocol, given: Given) -> Callable[..., Scores]:
    """Query the reference's index with the encoder's test rows.

    They come through the encoder's own head into the reference's space where it has one, and the ridge bridge that
    needs no labels is measured beside it; through the bridge alone otherwise.
    """
    from .retrieval import Retrieval, bridge

    def run(
        train: FeatureBank,
        test: FeatureBank,
        reference: FeatureBank,
        reference_test: FeatureBank,
        led: FeatureBank | None = None,
    ) -> Scores:
        itself = train.key == reference.key and bool(train.key)
        judge = Retrieval(protocol, given.quiet, given.folder)
        carried = reference_test if itself else bridge(train, reference, given.seed)(test)
        scores = replace(judge(reference, carried), evaluator="asymmetric")
        if led is None:
            return scores
        bridged = scores.score(scores.headline_metric or "map", scores.headline_k)
        note = f"queries through the encoder's own head; by a ridge bridge {bridged.metric} {100 * bridged.value:.1f} %"
        direct = judge(reference, led)
        return replace(
            direct,
            evaluator="asymmetric",
            notes=(*direct.notes, note),
            details={**direct.details, "bridge": bridged.value},
        )

    return run


def _alone(kind: str, known: str) -> Callable[[str], str]:
    """How the only protocol of an evaluator is found."""

    def find(name: str) -> str:
        if name != known:
            raise UserError(f"no {kind} protocol {name!r}; known: {known}")
        return name

    return find


def _agreement(protocol: object, given: Given) -> Callable[..., Scores]:
    from .retrieval import Agreement

    return Agreement()


def _cka(protocol: object, given: Given) -> Callable[..., Scores]:
    from .label_free import Alike

    return Alike(given.seed)


def _stability(protocol: object, given: Given) -> Callable[..., Scores]:
    from .label_free import Stability

    return Stability()


def _fewshot_protocol(name: str) -> FewShotProtocol:
    from .few_shot import fewshot_protocol

    return fewshot_protocol(name)


def _fewshot(protocol: FewShotProtocol, given: Given) -> Callable[..., Scores]:
    from .few_shot import FewShot

    return FewShot(protocol, given.seed)


def _damage(name: str) -> Damage:
    from .robustness import damage_protocol

    return damage_protocol(name)


def _robustness(protocol: Damage, given: Given) -> Callable[..., Scores]:
    from .robustness import Robustness

    return Robustness(protocol, seed=given.seed)


def _calibration(protocol: LinearProtocol | SGDProtocol, given: Given) -> Callable[..., Scores]:
    from .calibration import Calibration

    return Calibration(protocol, given.seed, given.device)


EVALUATORS: Registry[Kind] = Registry(
    "evaluators",
    {
        "knn": Kind("dino", _knn_protocol, _knn),
        "linear": Kind("simclr-lbfgs", _linear_protocol, _linear, several=_multilabel_protocol),
        "fewshot": Kind("shots", _fewshot_protocol, _fewshot),
        "robustness": Kind("label-noise", _damage, _robustness),
        "calibration": Kind("simclr-lbfgs", _linear_protocol, _calibration),
        "retrieval": Kind("full", _retrieval_protocol, _retrieval),
        "asymmetric": Kind("full", _retrieval_protocol, _asymmetric, paired=True),
        "agreement": Kind("neighbours", _alone("agreement", "neighbours"), _agreement, paired=True, labels=False),
        "cka": Kind("linear", _alone("cka", "linear"), _cka, paired=True, labels=False),
    },
    group="ssl_kd.evaluators",
    kind=Kind,
)


def _ood_protocol(name: str) -> int:
    from .ood import ood_protocol

    return ood_protocol(name)


def _ood(protocol: int, given: Given) -> Callable[..., Scores]:
    from .ood import OutOfDistribution

    return OutOfDistribution(protocol)


# Judged on pairs of tasks, so they are no choice among EVALUATORS: see EvalConfig.ood, and tasks of photos.
OOD, STABILITY = "ood", "stability"
LABEL_FREE = ("agreement", "cka")  # judge photos without labels where no evaluator that can was asked for
# Those of this package, the two on pairs among them; others come from EVALUATORS.
KINDS: dict[str, Kind] = {
    **EVALUATORS.built_in,
    OOD: Kind("knn50", _ood_protocol, _ood, labels=False),
    STABILITY: Kind("neighbours", _alone("stability", "neighbours"), _stability, labels=False),
}


def kind_of(name: str) -> Kind:
    """How the evaluator of that name is made."""
    return KINDS[name] if name in KINDS else EVALUATORS[name]


def split_evaluator(name: str) -> tuple[str, str]:
    """Return kind and protocol of an evaluator's name: "knn" is "knn/dino". UserError for unknown ones."""
    kind, _, protocol = name.partition("/")
    if kind == OOD:
        raise UserError("evaluators: ood judges pairs of tasks; give them as ood: [[inside, outside], ...]")
    if kind == STABILITY:
        raise UserError("evaluators: stability judges photos without labels by itself; give them as {name, photos}")
    row = EVALUATORS[kind]
    row.find(protocol or row.default)
    return kind, protocol or row.default


def indexed(evaluators: list[tuple[str, str]], index: str) -> list[tuple[str, str]]:
    """Return kinds and protocols with an approximate index for those that can have one; UserError when none can."""
    if not index:
        return evaluators
    able = [one for one in evaluators if one in (("retrieval", "top1000"), ("asymmetric", "top1000"))]
    if not able:
        raise UserError(
            f"index: {index!r} serves retrieval/top1000 and asymmetric/top1000; neither is among evaluators"
        )
    return [
        split_evaluator(f"{kind}/{protocol}@{index}") if (kind, protocol) in able else (kind, protocol)
        for kind, protocol in evaluators
    ]
