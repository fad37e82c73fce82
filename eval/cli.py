"""The evaluation's command line: parsed before anything heavy is imported, so that help and mistakes are answered at once."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_kd.runtime.command_line import guarded

from .runner.config import read_config


def main(argv: Sequence[str] | None = None, prog: str = "python -m eval") -> int:
    """Run an evaluation from a command line and print its table; returns the exit code (2 for bad input)."""
    return guarded(lambda words: _run(words, prog), sys.argv[1:] if argv is None else argv, prog)


def _run(argv: Sequence[str], prog: str) -> int:
    if any(word.split("=")[0] == "--selfcheck" for word in argv):
        from .selfcheck import main as check

        return check(argv, prog)
    config = read_config(argv, prog)
    from rich.console import Console

    from .evaluation import evaluate
    from .results.results import together

    try:
        results = evaluate(config, quiet=config.quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command resumes with what is unfinished") from None
    Console(width=None if sys.stdout.isatty() else 160).print(results.table())
    for said in results.answers():
        print(said)
    for note in together(results.notes):
        print(f"note: {note}")
    print(f"{Path(config.out) / 'results.md'}, .csv and .jsonl hold all {len(results.rows)} figures")
    if config.report:
        print(f"{Path(config.out) / 'report.html'} shows them")
    print("ssl-kd report puts it beside other runs and evaluations: name their folders behind this one")
    print(f"Next: {shlex.join(['ssl-kd', 'report', str(config.out), '--out', 'report.html'])}")
    return 0
