"""`ssl-kd report RUN...`: one page of what is finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_kd.errors import UserError
from ssl_kd.runtime.command_line import OneLineParser


def main(argv: Sequence[str]) -> int:
    """Write one report of finished runs and evaluations, and print what it opens with."""
    parser = OneLineParser(
        "ssl-kd report",
        description="Make one report of finished runs and evaluations, and compare them. Nothing is measured anew.",
        epilog="examples:\n  ssl-kd report runs/x\n  ssl-kd report runs/a runs/b runs/eval --out report.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of ssl-kd distill and of ssl-kd eval")
    parser.add_argument("--out", help="the page to write; default: report.html in the folder, where there is one only")
    parser.add_argument(
        "--reference", default="", help="encoder whose figures are 100 %% (default: the first evaluation's)"
    )
    options = parser.parse_args(argv)
    if options.out is None and len(options.runs) > 1:
        raise UserError("--out: of several folders, say where the page shall be, such as --out report.html")
    out = Path(options.out or Path(options.runs[0]) / "report.html")
    from ssl_kd.eval.gather import report
    from ssl_kd.runtime.run_dir import STUDENT

    results = report(options.runs, out, options.reference)
    for said in [*results.answers(), *(run.sentence() for run in results.runs)]:
        print(said)
    print(f"{out} shows it")
    if results.runs and not results.cells:
        first = results.runs[0].folder / STUDENT
        print(f"Next: ssl-kd embed --weights {first} --images photos/ --out features.npz; ssl-kd eval --help")
    else:
        print(f"Next: open {out} in a browser")
    return 0
