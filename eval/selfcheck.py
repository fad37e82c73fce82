"""Does our evaluation give the published figure? `ssl-kd eval --selfcheck NAME --imagenet FOLDER`.

    ssl-kd eval --selfcheck dino_vits16 --imagenet /data/imagenet

The zoo knows which protocol a published figure belongs to. It is run on the user's ImageNet (train/<class>/<file> and
val/<class>/<file>), and the published figure has to lie in our figure's 95 % interval. Exit code 0 if it does, 1 if not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssl_kd.errors import UserError, one_of
from ssl_kd.runtime.command_line import OneLineParser

if TYPE_CHECKING:
    from ssl_kd.checkpoints.zoo_entry import Entry
    from ssl_kd.checkpoints.zoo_protocols import Published

ROUNDING = 0.0005  # of a share: published figures have one digit behind the point


@dataclass(frozen=True)
class Verdict:
    """Our figure with its interval, all as shares of 1, beside the published one."""

    entry: Entry
    published: Published
    value: float
    low: float
    high: float
    images: int

    @property
    def agrees(self) -> bool:
        """Whether the published figure, as it was rounded, lies in our interval."""
        return self.low - ROUNDING <= self.published.figure / 100 <= self.high + ROUNDING

    def __str__(self) -> str:
        ours = f"{100 * self.value:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"
        theirs = f"{self.published.figure:.1f} published at {self.entry.source}"
        says = "agrees with" if self.agrees else "does not agree with"
        return (
            f"{self.entry.name}, {self.published.evaluator}: {ours} % on {self.images:,} test images {says} {theirs}"
            + ("" if self.agrees else "; docs/teachers.md says what to look at first")
        )


def main(argv: Sequence[str], prog: str) -> int:
    """Run from a command line; returns 0 where the figures agree, 1 where they do not. UserError for bad input."""
    parser = OneLineParser(f"{prog} --selfcheck", description="Run a published protocol and compare the figures.")
    parser.add_argument("--selfcheck", required=True, metavar="NAME", help="a teacher of `ssl-kd zoo list`")
    parser.add_argument("--imagenet", required=True, metavar="FOLDER", help="with train/<class>/ and val/<class>/")
    parser.add_argument("--kind", choices=("knn", "linear"), help="which figure; default: k-NN where it is published")
    parser.add_argument("--weights", help="the teacher's file; default: the zoo's own, which is brought if need be")
    parser.add_argument("--out", default="runs/selfcheck", help="run folder (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="decoding threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(list(argv))
    verdict = selfcheck(
        options.selfcheck,
        options.imagenet,
        options.kind,
        options.weights,
        options.out,
        options.quiet,
        batch_size=options.batch_size,
        threads=options.threads,
        device=options.device,
    )
    print(verdict)
    return 0 if verdict.agrees else 1


def selfcheck(
    name: str,
    imagenet: str,
    kind: str | None = None,
    weights: str | None = None,
    out: str = "runs/selfcheck",
    quiet: bool = False,
    **settings: int | str,
) -> Verdict:
    """Run the protocol of a published figure and compare; settings are those of `EvalConfig`. UserError for bad input."""
    from ssl_kd.checkpoints.zoo import find
    from ssl_kd.checkpoints.zoo_protocols import commands, published

    from .evaluation import evaluate
    from .runner.config import EvalConfig

    entry = find(name)
    figures = {one.kind: one for one in published(entry)}
    if not figures:
        raise UserError(f"selfcheck: {entry.name}: {commands(entry)}")
    wanted = figures[one_of("kind", kind or next(iter(figures)), list(figures))]
    encoder = {"name": entry.name, "weights": weights or entry.name}
    encoder |= {"feature": wanted.feature} if wanted.feature else {}
    config = EvalConfig(
        out=f"{out}/{entry.name}",
        tasks=[{"name": "imagenet", "path": imagenet}],
        encoders=[encoder],
        evaluators=[wanted.evaluator],
        report=False,
        **settings,  # type: ignore[arg-type]  # their names and types are the command line's
    )
    results = evaluate(config, quiet=quiet)
    row = results.headline(entry.name, "imagenet", wanted.evaluator)
    return Verdict(entry, wanted, float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"]))
