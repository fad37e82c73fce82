"""Which evaluators an evaluation uses: each by name, as a protocol of one's own, or as an object.

    choices(["knn", "linear/quick-lbfgs"])                        # by name
    choices([KNNProtocol("near", (1, 3), 3), ("calibration", my_linear_protocol)])
    choices([KNN("plain"), LinearProbe(strength=1.0), my_function])   # anything called as (train, test) -> Scores

An object of ours, or one with a method `key() -> str`, has a record that decides its figures, and its cells are kept.
Another one's code has no name: its cells are computed each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssl_kd.errors import UserError, one_line

from ..metrics import Scores
from .registry import EVALUATORS, KINDS, Kind, indexed, kind_of, split_evaluator


@dataclass(frozen=True, eq=False)
class Choice:
    """One evaluator of a table: its two names, how it is made, and of what (a protocol, or the evaluator itself).

    `record` says what decides its figures; `kept` whether that is all of it, so that finished cells may be kept.
    """

    kind: str
    protocol: str
    row: Kind
    what: object
    record: str
    kept: bool = True
    is_object: bool = True

    @property
    def title(self) -> str:
        """The name that tables show."""
        return f"{self.kind}/{self.protocol}"

    def unfit(self, several: bool, labelled: bool = True) -> str:
        """Return why it cannot judge a task (whose images show `several` classes, or none), in words; empty when it can."""
        if not labelled and self.row.labels:
            return "it needs labels, and these are photos without"
        if not several:
            return ""
        if self.row.several is None:
            return "it needs one class per image"
        try:
            self.row.several(self.what)
        except UserError as error:
            return str(error)
        return ""

    def constants(self, several: bool) -> object:
        """Return the protocol with all its constants, in its form for several classes per image where it has one."""
        return self.row.several(self.what) if several and self.row.several else self.row.find(self.what)


def choices(evaluators: Sequence[object], index: str = "") -> list[Choice]:
    """Return the evaluators, a name once however it is spelt. UserError for an unknown name, a stray type, one name twice.

    Each is a name, a protocol, an evaluator, or a pair (kind, protocol) or (name, evaluator). `index` gives those named
    that can have one an approximate index.
    """
    names = [split_evaluator(one) for one in evaluators if isinstance(one, str)]
    named = iter(indexed(names, index))
    found: dict[str, Choice] = {}
    one: object
    for one in evaluators:
        choice = by_name(*next(named)) if isinstance(one, str) else _given(one)
        if found.setdefault(choice.title, choice) is not choice and choice.is_object:
            raise UserError(f"evaluators: two are called {choice.title!r}; give one of them a name of its own")
    return list(found.values())


def by_name(kind: str, protocol: str) -> Choice:
    """Return an evaluator of the table."""
    row = kind_of(kind)
    found = row.find(protocol)
    if kind in KINDS:  # a protocol of a type of its own brings code that no version names
        kept = type(found).__module__.startswith(("ssl_kd.", "builtins"))
        return Choice(kind, protocol, row, protocol, repr(found), kept, is_object=False)
    maker = EVALUATORS.maker(kind)
    return Choice(kind, protocol, row, protocol, f"{found!r} {maker}", kept=bool(maker), is_object=False)


def _given(one: object) -> Choice:
    name: object
    what: object
    name, what = one if isinstance(one, tuple | list) and len(one) == 2 else ("", one)
    if callable(what) and not isinstance(what, type):
        return _evaluator(str(name), what)
    alone = next((kind for kind, types in _protocols().items() if isinstance(what, types)), "")
    kind = str(name) or alone
    if kind not in EVALUATORS or not alone:
        raise UserError(
            "evaluators: expected a name, a protocol or an evaluator (called with train and test bank), got "
            f"{one_line(repr(one))}"
        )
    row = EVALUATORS[kind]
    record, kept = described(row.find(what))
    return Choice(kind, str(getattr(what, "name", "")), row, what, record, kept)


def _evaluator(name: str, what: Callable[..., Scores]) -> Choice:
    kind, _, protocol = name.partition("/")
    kind = kind or str(getattr(what, "name", "") or getattr(what, "__name__", type(what).__name__.lower()))
    if not protocol:
        own = getattr(what, "protocol", "own")
        protocol = own if isinstance(own, str) else str(getattr(own, "name", "own"))
    paired = bool(getattr(what, "paired", False))
    row = Kind(
        "",
        _itself,
        lambda _protocol, _given: what,
        paired,
        _several(kind, what),
        labels=bool(getattr(what, "labels", not paired)),
    )
    return Choice(kind, protocol, row, what, *described(what))


def _several(kind: str, what: object) -> Callable[..., object] | None:
    """An evaluator of ours says by its kind whether it judges images of several classes; a stranger's has to know."""
    if not _is_ours(what):
        return _itself
    from .multilabel import MultiLabelProbe

    return _itself if isinstance(what, MultiLabelProbe) else None


def _itself(what: object) -> object:
    return what


def _protocols() -> dict[str, tuple[type, ...]]:
    """The types of protocols, each under the kind that it means when it comes alone."""
    from ..solvers.sgd import SGDProtocol
    from .few_shot import FewShotProtocol
    from .knn import KNNProtocol
    from .linear_probe import LinearProtocol
    from .retrieval import RetrievalProtocol
    from .robustness import Damage

    return {
        "knn": (KNNProtocol,),
        "linear": (LinearProtocol, SGDProtocol),
        "fewshot": (FewShotProtocol,),
        "robustness": (Damage,),
        "retrieval": (RetrievalProtocol,),
    }


def described(what: object) -> tuple[str, bool]:
    """Return what an object is, for the record, and whether that decides all it does."""
    if callable(key := getattr(what, "key", None)):
        return f"{_path(what)} {key()}", True
    text = repr(what)
    return (text, True) if _is_ours(what) and "<" not in text else (_path(what), False)


def _path(what: object) -> str:
    named = what if hasattr(what, "__qualname__") else type(what)
    return f"{named.__module__}.{getattr(named, '__qualname__', '')}"


def _is_ours(what: object) -> bool:
    return type(what).__module__.startswith(f"{__name__.rpartition('.')[0]}.")
