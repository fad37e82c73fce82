"""Feature banks: the corridor between encoders and evaluators.

`extract` turns images into a `FeatureBank`; every evaluator sees banks and never a network, so it also serves anyone
who brings `.npy` or `.npz` files. Features are stored as the network gave them: normalising is each protocol's affair.
"""

from __future__ import annotations

import hashlib
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from ssl_kd.errors import NonFinite, UserError
from ssl_kd.runtime.files import atomically, probe, unsealed

if TYPE_CHECKING:
    from torch import Tensor

# What numpy and zipfile raise for bytes that changed: of a method, a version or a length that is none, of a text that is no array's head
DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    KeyError,
    RuntimeError,
    OverflowError,
    MemoryError,
    SyntaxError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
ROWS = 8192  # rows looked at in one go, so that a memory-mapped bank is never copied whole
NAME = 256  # characters of a class name
LONGEST = 1e15  # a row's length up to which float32 can hold its square, and sums of such squares over many rows


@dataclass(frozen=True, eq=False, repr=False)
class FeatureBank:
    """Features (N, D) float, labels (N,) of any kind or None, and the name of each row; `key` names its making.

    `held` (N,), booleans (or zeros and ones), marks the rows of a data set's own validation split, which a probe then
    chooses by. Lists and torch tensors become arrays; a memory map stays one. Raises UserError when the parts do not
    belong together.
    """

    features: np.ndarray
    labels: np.ndarray | None = None
    ids: Sequence[str] = ()
    key: str = ""
    held: np.ndarray | None = None

    def __post_init__(self) -> None:
        features = as_array("features", self.features)
        if features.ndim != 2 or not features.shape[1] or features.dtype.kind != "f":
            raise UserError(
                f"features: expected floats of shape (rows, width), got {features.dtype} of shape "
                f"{features.shape}; convert them first"
            )
        object.__setattr__(self, "features", features)
        if self.labels is not None:
            object.__setattr__(self, "labels", as_labels(self.labels))
        if self.held is not None:
            object.__setattr__(self, "held", as_held(self.held))
        for name, part in (("labels", self.labels), ("ids", self.ids), ("held", self.held)):
            if part is not None and len(part) not in (len(features), 0 if name == "ids" else -1):
                raise UserError(f"{name}: {len(part)} for {len(features)} rows of features; both must be equal")

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else f"labels {self.labels.dtype} {self.labels.shape}"
        held = "" if self.held is None else f", {int(self.held.sum()):,} held out"
        ids = f"{len(self.ids):,} ids" if len(self.ids) else "no ids"
        size = f"{len(self):,} x {self.width} {self.features.dtype}"
        return f"FeatureBank({size}, {labels}, {ids}{held}, key={self.key!r})"

    @property
    def width(self) -> int:
        """D, the numbers per row."""
        return int(self.features.shape[1])

    def rows(self, which: np.ndarray) -> FeatureBank:
        """Return the bank of the chosen rows (indices or booleans)."""
        numbers = np.arange(len(self))[which]
        labels = None if self.labels is None else np.asarray(self.labels)[numbers]
        ids = [self.ids[i] for i in numbers] if len(self.ids) else ()
        held = None if self.held is None else self.held[numbers]
        if held is not None and (held.all() or not held.any()):
            held = None  # nothing left of one side of the split: a probe has to draw its own
        return FeatureBank(
            np.asarray(self.features[numbers]), labels, ids, f"{self.key}[{digest_of_parts(numbers)}]", held
        )

    def save(self, path: str | Path) -> Path:
        """Write the bank to one `.npz` file, atomically, and return its path. UserError where it cannot be written."""
        path = Path(path)
        if path.suffix != ".npz":  # with_suffix would take the epoch for one: student.epoch2
            path = path.with_name(f"{path.name}.npz")
        probe(path)
        parts = {
            "features": self.features,
            "ids": np.asarray(self.ids, dtype=np.str_),
            "key": np.asarray(self.key),
        }
        if self.labels is not None:
            parts["labels"] = self.labels
        if self.held is not None:
            parts["held"] = self.held
        check = np.array(_checksum(parts))  # first: a damaged index hides what comes behind the damage
        atomically(path, lambda file: np.savez(file, allow_pickle=False, check=check, **parts))
        return path


def as_array(name: str, part: object) -> np.ndarray:
    """Return an array, a list or a torch tensor (on any device, of any precision) as an array; a memory map stays one."""
    if isinstance(part, np.ndarray):
        return part
    if hasattr(part, "detach"):  # a torch tensor; numpy knows no bfloat16
        tensor = cast("Tensor", part).detach().cpu()
        part = tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
    try:
        return np.asarray(part)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: expected an array, got {type(part).__name__} ({error})") from error


def as_labels(labels: object) -> np.ndarray:
    """Return labels as an array; UserError unless there is one per row, all numbers or all strings, none of them NaN.

    Names are compared as text: bytes are read as UTF-8, the two Unicode forms of a letter are one (NFC), and a name of
    more than 256 characters is cut and told apart by a digest, since an array gives every row the longest one's room.
    """
    found = as_array("labels", _short(labels))
    if isinstance(labels, list | tuple) and found.ndim == 1 and len({isinstance(one, str) for one in labels}) > 1:
        raise UserError("labels: some are strings and some are not; all must be of one kind")
    if found.dtype.kind == "O" and found.ndim == 1:
        kinds = {isinstance(one, str) for one in found.tolist()}
        if len(kinds) < 2 and not any(one is None for one in found.tolist()):
            found = as_array("labels", _short(found.tolist()))
    if found.ndim < 1 or found.dtype.kind not in "biufUS":
        raise UserError(
            f"labels: expected one number or string per row, all of one kind, got {found.dtype} of shape {found.shape}"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise UserError("labels: some are not finite; leave those rows out")
    return _as_text(found) if found.dtype.kind in "US" and found.ndim == 1 else found


def _short(labels: object) -> object:
    """Return a list of labels with its over-long names cut; anything else as it is."""
    if not isinstance(labels, list | tuple) or not any(
        isinstance(one, str | bytes) and len(one) > NAME for one in labels
    ):
        return labels
    return [_cut(one) if isinstance(one, str | bytes) and len(one) > NAME else one for one in labels]


def _cut(name: str | bytes) -> str:
    text = name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
    text = unicodedata.normalize("NFC", text)
    return f"{text[: NAME - 40]}... {hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:32]}"


def _as_text(names: np.ndarray) -> np.ndarray:
    """Return names (N,) as text in one Unicode form; ASCII, the usual case, needs no look at each."""
    if names.dtype.kind == "U" and (not names.size or np.ascontiguousarray(names).view(np.uint32).max() < 128):
        return names
    known, which = np.unique(names, return_inverse=True)
    try:
        texts = [one.decode() if isinstance(one, bytes) else one for one in known.tolist()]
    except UnicodeDecodeError as error:
        raise UserError(f"labels: {error.object!r:.80} are bytes that are no UTF-8; give names as text") from None
    return np.array([unicodedata.normalize("NFC", one) for one in texts], np.str_)[which]


def as_held(held: object) -> np.ndarray:
    """Return `held` as booleans; UserError unless it is zeros and ones and has some of both."""
    found = as_array("held", held)
    if found.ndim != 1 or found.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
        raise UserError(
            "held: expected one boolean per row (or 0 and 1), true where a row is held out; row numbers are none"
        )
    found = found.astype(bool)
    if found.all() or not found.any():
        raise UserError(
            f"held: {'every row is' if found.any() else 'no row is'} held out; a probe fits to the rest and chooses on "
            "the held; pass None to have a part drawn"
        )
    return found


def load_bank(path: str | Path, labels: str | Path | None = None) -> FeatureBank:
    """Read a bank: our `.npz`, or features in `.npy` (memory-mapped) with labels in a second `.npy`.

    A `.npy` that `ssl-kd embed` wrote brings its ids and key from the files beside it.

    A foreign `.npz` needs an array `features` (N, D) and may have `labels`, `ids` and `held`. Pickled arrays are refused.
    What `save` wrote is compared with its checksum. Raises UserError for a file that is none, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such feature file; expected .npz or .npy")
    try:
        if path.suffix == ".npy":
            parts = {"features": np.load(path, allow_pickle=False, mmap_mode="r")}
            key, named = _beside(path, len(parts["features"]))
            parts |= {"ids": named} if len(named) else {}
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                parts = {name: stored[name] for name in stored.files}
            key = str(parts.get("key", path.name))
    except DAMAGED as error:
        raise UserError(f"{path}: not a feature file ({error}); expected .npz or .npy of plain numbers") from error
    if "check" in parts and str(parts.pop("check")) != _checksum(parts):
        raise UserError(f"{path}: damaged: its checksum does not fit what is in it; write it anew")
    if "features" not in parts:
        raise UserError(f"{path}: no array named 'features', only {', '.join(parts) or 'nothing'}")
    if labels is not None:
        parts["labels"] = _load_labels(Path(labels))
    ids = parts["ids"].tolist() if "ids" in parts else ()
    return FeatureBank(parts["features"], parts.get("labels"), ids, key, parts.get("held"))


def _beside(path: Path, rows: int) -> tuple[str, np.ndarray]:
    """The key and the ids of a .npy: those that `ssl-kd embed` left beside it, or its name and size and no ids.

    UserError where they are there and do not fit: features under other pictures' names would look right and be wrong.
    """
    ids, about = path.with_suffix(".ids.txt"), path.with_suffix(".json")
    if not (ids.is_file() and about.is_file()):
        return f"{path.name}:{path.stat().st_size}", np.empty(0, np.str_)
    try:
        found = unsealed(about.read_text(encoding="utf-8"))
        names = ids.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
        sizes = found["bytes"]
        if found["rows"] != rows or len(names) != rows or not isinstance(sizes, list) or sizes[1] != ids.stat().st_size:
            raise ValueError("it is of other rows")
        return str(found["key"]), np.array(names, np.str_)
    except (OSError, ValueError, KeyError, TypeError, LookupError) as error:
        raise UserError(f"{about}: does not fit {path.name} ({error}); write both anew, or move it away") from None


def _checksum(parts: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of named arrays: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        array = np.asarray(part)
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        for rows in blocks(len(array)) if array.ndim else [...]:
            total.update(np.ascontiguousarray(array[rows]).tobytes())
    return total.hexdigest()


def _load_labels(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise UserError(f"{path}: not a file of labels ({error}); expected .npy of numbers or words") from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise UserError(f"{path}: holds several arrays; expected labels alone, in a .npy file")
    return found


@dataclass(frozen=True, eq=False)
class Matched:
    """A train and a test bank whose labels were turned into class numbers: `y` indexes `classes`."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: np.ndarray
    same: bool


def match(train: FeatureBank, test: FeatureBank, squares: bool = False) -> Matched:
    """Check that two banks can be evaluated together and number their classes; labels may be strings or any integers.

    Classes that only train knows are kept (they can be wrong guesses). Raises UserError for an empty split, no labels,
    different widths, one class, classes that only test knows, with `squares` for rows that are too long for float32,
    and NonFinite for features that are not numbers.
    """
    check_labelled(train, "train", squares)
    check_labelled(test, "test", squares)
    if train.width != test.width:
        raise UserError(
            f"train features are {train.width} wide and test features {test.width}: two different encoders?"
        )
    y_train, y_test = np.asarray(train.labels), np.asarray(test.labels)
    classes, y = numbered(train)
    if y_test.ndim != 1:
        raise _several(y_test)
    if (y_train.dtype.kind in "US") != (y_test.dtype.kind in "US"):
        raise UserError(f"train labels are {y_train.dtype} and test labels {y_test.dtype}: both must be of one kind")
    found = np.searchsorted(classes, y_test).clip(max=len(classes) - 1)
    if (strangers := np.unique(y_test[classes[found] != y_test])).size:
        names = ", ".join(map(str, strangers[:3])) + (", ..." if len(strangers) > 3 else "")
        raise UserError(
            f"test has {len(strangers)} classes that train lacks ({names}): are both splits of one data set?"
        )
    return Matched(train.features, y, test.features, found, classes, train is test)


def check_labelled(bank: FeatureBank, name: str, squares: bool = False) -> None:
    """Raise UserError for a bank without rows or labels, and what `check_finite` raises."""
    if len(bank) == 0:
        raise UserError(f"{name}: the bank has no rows; an evaluation needs at least one")
    if bank.labels is None:
        raise UserError(f"{name}: the bank has no labels; an evaluation needs one per row")
    check_finite(bank, name, squares)


def numbered(train: FeatureBank) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of a train bank, sorted, and each row's number among them. UserError for fewer than two."""
    labels = np.asarray(train.labels)
    if labels.ndim != 1:
        raise _several(labels)
    classes, y = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"train has one class only ({classes[0]}); an evaluation needs at least two")
    return classes, y


def _several(labels: np.ndarray) -> UserError:
    return UserError(
        f"labels of shape {labels.shape} hold several classes per row; use ssl_kd.eval.evaluators.multilabel for them"
    )


def check_finite(bank: FeatureBank, name: str, squares: bool = False) -> None:
    """Raise NonFinite, naming the first bad row, unless every feature is a number.

    `squares`: rows are used as long as they are, so UserError for one that is longer than LONGEST.
    """
    for start in range(0, len(bank), ROWS):
        rows = bank.features[start : start + ROWS]
        bad = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(bad):
            raise NonFinite(f"{_row(bank, name, start + bad[0])} is not finite; look at the encoder or the file")
        if squares and rows.dtype != np.float16:  # whose largest number is far below
            with np.errstate(over="ignore"):
                single = np.asarray(rows, np.float32)
                lengths = np.einsum("nd,nd->n", single, single)
            if len(long := np.flatnonzero(~(lengths < LONGEST**2))):
                raise UserError(
                    f"{_row(bank, name, start + long[0])} is longer than {LONGEST:g}, which float32 cannot square and "
                    "sum; divide all features, train and test, by one constant"
                )


def _row(bank: FeatureBank, name: str, row: int) -> str:
    who = f" ({bank.ids[row]})" if len(bank.ids) else ""
    return f"{name}: row {row}{who} of the features"


def blocks(n: int, size: int = ROWS) -> Iterator[slice]:
    """Cut range(n) into slices of at most `size`."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def digest_of_parts(*parts: object) -> str:
    """A short name of arrays and texts: 16 hexadecimal digits of their SHA-256."""
    text = "\n".join(part.tobytes().hex() if isinstance(part, np.ndarray) else str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
