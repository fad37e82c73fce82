"""The card beside an exported file: how to load it, what to feed it, what was measured, and that we wrote it.

The card holds the file's SHA-256. A file is replaced only where the card beside it says that it is ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ssl_kd.checkpoints.licences import UNSTATED, warning
from ssl_kd.checkpoints.loading import inspect
from ssl_kd.errors import UserError
from ssl_kd.exporters.judge import Ask, Judge, Verdict
from ssl_kd.models.encoder import Encoder, as_record
from ssl_kd.runtime.download import digest_of
from ssl_kd.runtime.ownership import refuse_replacing

BOUND = 1e-4  # largest difference allowed, as a share of the largest number that the Encoder says
NORMALISED = "normalised by mean and std"
PLAIN = "in [0, 1]; the file itself normalises"
SUM, REPLACED = "sha256", "replaced_sha256"


@dataclass(frozen=True)
class Exported:
    """One file that was kept, and how far it is from the Encoder on the same pictures."""

    format: str
    path: Path
    card: Path
    difference: float  # largest absolute difference of any number of any embedding
    relative: float  # the same as a share of the largest number
    cosine: float  # smallest over the pictures
    verdict: Verdict | None = None  # of a smaller copy, which is another network: how much of the student it keeps

    @property
    def met(self) -> bool:
        """Whether the file keeps what was asked for; one that says the same always does."""
        return self.verdict is None or self.verdict.met

    def __str__(self) -> str:
        files = [file for file in self.path.iterdir() if file.is_file()] if self.path.is_dir() else [self.path]
        first = f"{self.format:<12}{self.path} ({sum(f.stat().st_size for f in files) / 1e6:,.1f} MB): "
        if self.verdict is not None:
            return "\n    ".join([f"{first}smallest cosine {self.cosine:.4f}", *self.verdict.lines()])
        return (
            f"{first}largest difference {self.difference:.2g} ({self.relative:.1g} of the largest number), 1 - cosine "
            f"{1 - self.cosine:.1g}"
        )


@dataclass(frozen=True)
class Target:
    """A way out: the file's name in a folder, who wants which pixels, how it is written and how it is asked again.

    `shrink` makes a written file smaller in place, by what the judge says, and returns fields of the `Verdict`. `companion`
    is the ending of a second file that is written beside: `write` puts it to its own path with that ending behind.
    """

    name: str
    reader: str  # what it is read back by, for the card
    pixels: str  # what the file's network is fed
    possible: Callable[[Encoder], tuple[str, ...]]  # lines to load it; UserError where it cannot be
    write: Callable[[Encoder, Path, Mapping[str, object]], None]
    reopen: Callable[[Encoder, Path], Ask]
    default_feature: bool = False  # a state dict is read by its library's own forward
    shrink: Callable[[Path, Judge], dict[str, object]] | None = None
    companion: str = ""


def description(encoder: Encoder, target: Target) -> dict[str, object]:
    """What somebody who has only the file must know; goes into the file where it has a place, and into the card."""
    feature = encoder.network.default if target.default_feature else encoder.feature
    eyes, then = encoder.preprocessing, ", subtract mean, divide by std"
    led = encoder.led and not target.default_feature
    return as_record(encoder) | {
        "feature": feature,
        "dim": encoder.width(feature),
        "digest": encoder.digest,
        **({"space": asdict(replace(encoder.space, pixels=encoder.heard))} if led else {}),
        "pixels": "normalised" if target.pixels == NORMALISED else "plain",
        "input": f"(B, 3, {eyes.size}, {eyes.size}) float32 RGB, {target.pixels}",
        "output": f"(B, {encoder.width(feature)}) float32",
        "licence": encoder.licence or UNSTATED,
        **({"licence_warning": sentence} if (sentence := warning([encoder.licence])) else {}),
        "preprocessing": asdict(eyes)
        | {
            "order": f"resize {'to a square' if eyes.square else 'the shorter side'}, crop the centre, divide by 255"
            + (then if target.pixels == NORMALISED else "")
        },
    }


def card_of(
    done: Exported, target: Target, encoder: Encoder, lines: tuple[str, ...], notes: Mapping[str, object], part: Path
) -> str:
    """The card of a file that lies in `part` and will be `done.path`, as JSON."""
    measured = {
        "against": "the Encoder, in float32 on a CPU",
        "read_back_by": target.reader,
        "max_absolute_difference": done.difference,
        "as_share_of_largest": done.relative,
        "bound": BOUND if done.verdict is None else None,
        "min_cosine": done.cosine,
        "verdict": None if done.verdict is None else asdict(done.verdict),
    }
    load = [line.replace("FILE", repr(done.path.name)) for line in lines]
    card = {"format": done.format, "file": done.path.name} | _sums(part, done.path) | description(encoder, target)
    if target.companion:
        beside = companion_of(done.path, target)
        card["companion"] = {"file": beside.name} | _sums(companion_part(part, target), beside)
    return json.dumps(card | {"measured": measured, "load": load, "card": dict(notes)}, indent=1)


def _sums(part: Path, path: Path) -> dict[str, str]:
    """The digest of what will lie at `path`, and of what lies there now."""
    return {SUM: digest_of(part)} | ({REPLACED: digest_of(path)} if path.exists() else {})


def companion_of(path: Path, target: Target) -> Path:
    """Where the second file of an export lies, by the library's rule: the same name with another ending."""
    return path.with_suffix(target.companion)


def companion_part(part: Path, target: Target) -> Path:
    """Where the second file lies while it is written."""
    return part.with_name(f"{part.name}{target.companion}")


def notes_of(student: Encoder | str | os.PathLike[str]) -> dict[str, object]:
    """The card of a student's file: its teacher, its objective, its images."""
    if isinstance(student, Encoder) or not Path(student).is_file():
        return {}
    return dict(inspect(student).card)


def card_path(path: Path) -> Path:
    """Where the card of an exported file lies."""
    return path.with_name(f"{path.name}.json")


def require_ours(path: Path) -> None:
    """UserError, and nothing touched, where a file that is no export of ours, or a card of another's, lies in the way."""
    refuse_replacing("out", card_path(path), lambda card: bool(_read(card, path)))
    refuse_replacing("out", path, _is_ours)


def require_our_companion(path: Path, target: Target) -> None:
    """UserError where the second file of an export would replace one that is not ours."""
    if target.companion and path.suffix != Path(target.name).suffix:
        raise UserError(f"out: {path.name}: this format's file ends in {Path(target.name).suffix}")
    if target.companion:
        said = _read(card_path(path), path).get("companion", {})
        ours = {said.get(SUM), said.get(REPLACED)} if isinstance(said, dict) else set()
        refuse_replacing("out", companion_of(path, target), lambda file: digest_of(file) in ours)


def _read(card: Path, path: Path) -> dict[str, object]:
    """What a card says of the file of that name; nothing where it is none."""
    try:
        said = json.loads(card.read_text()) if card.exists() else {}
    except ValueError:
        return {}
    ours = isinstance(said, dict) and {"format", "measured", "load"} <= said.keys() and said.get("file") == path.name
    return said if ours else {}


def _is_ours(path: Path) -> bool:
    """Whether the card beside it vouches for the file; cards of older versions hold no digest."""
    said = _read(card_path(path), path)
    return bool(said) and (SUM not in said or digest_of(path) in (said[SUM], said.get(REPLACED)))
