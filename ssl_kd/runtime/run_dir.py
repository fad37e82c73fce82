"""The run directory: what was asked, what happened, and the state to resume from. Every write is atomic.

config.yaml          what was asked, every default filled in
environment.json     versions, machine, command
metrics.jsonl        one line per logged step and per look at the held-out images; metrics.csv the same as a table
last.ckpt            student, heads, queues, optimiser, position: enough to go on (kept after the end)
prototypes/          anchors of objectives on prototypes, under a digest of all that decides them
student.safetensors  the trained student, readable by `ssl_kd.load_encoder`, `ssl-kd eval`, `ssl-kd inspect`
student_best.safetensors  the student whose held-out images had the most neighbours in common with the teacher's
README.md            what this folder is and how to reproduce it
students/NAME/       of several students: metrics, students and card of each
unreadable.json      only after a run that stopped at too many unreadable images: which ones
.ssl_kd.json         which of these names are ours to replace and to remove

A process may be killed at any moment: what it leaves is whole, or is swept up by the next one. A folder of somebody
else's is refused before a byte of it is touched, also with overwrite.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch
import yaml

from ssl_kd.errors import UserError, one_line
from ssl_kd.runtime.files import append_line, atomic_text, locked, sealed, sweep, unsealed
from ssl_kd.runtime.loggers import METRICS, Log, Table, names, open_logs, records, step_of
from ssl_kd.runtime.ownership import MARKER, Kind, mark, remove_ours, require_ours
from ssl_kd.runtime.state import load_state, save_state
from ssl_kd.runtime.versions import installed

LAST = "last.ckpt"
STUDENT = "student.safetensors"
BEST = "student_best.safetensors"
UNREADABLE_IMAGES = "unreadable.json"
MADE_BY = "made_by"  # of a state: the settings of its run that decide what is learned, as YAML
BEGIN_ANEW = "put a copy in its place, or remove it to begin anew"
# What torch.load raises for a file that is damaged, or none of its own.
UNREADABLE = (
    OSError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
)
# Settings that do not change what is learned: a run may be resumed with other values.
FREE = frozenset(
    {
        "out",
        "targets",
        "threads",
        "quiet",
        "log",
        "log_every",
        "save_minutes",
        "accelerator",
        "overwrite",
        "patience",
        "verify",
    }
)
# What the config.yaml of every version says: how a run's folder without a marker is recognised.
ALWAYS_SET = frozenset(
    {
        "student",
        "student_args",
        "objective",
        "images",
        "out",
        "views",
        "epochs",
        "batch_size",
        "precision",
        "save_minutes",
    }
)
HEX = "[0-9a-f]" * 16


def _is_older_run(folder: Path) -> bool:
    try:
        return ALWAYS_SET <= _settings(folder / "config.yaml").keys()
    except (OSError, UserError):
        return False


# In the order in which they are removed: config.yaml last, so that a kill in between leaves a run that begins anew.
RUN = Kind(
    "run",
    "out",
    "a run's folder",
    (
        LAST,
        STUDENT,
        BEST,
        METRICS,
        "metrics.csv",
        f"targets/{HEX}.crc",
        f"targets/{HEX}.f16",
        f"targets/{HEX}.u4",
        f"targets/{HEX}.levels",
        f"targets/{MARKER}",
        f"prototypes/{HEX}.pt",
        "tensorboard/events.out.tfevents.*",
        UNREADABLE_IMAGES,
        "README.md",
        "environment.json",
        "config.yaml",
    ),
    _is_older_run,
)

# The same with several students, each with a folder of its own.
STUDENTS = "students"
OF_A_STUDENT = (STUDENT, BEST, METRICS, "metrics.csv", "README.md")
RUN_OF_STUDENTS = replace(RUN, names=(*(f"{STUDENTS}/*/{name}" for name in OF_A_STUDENT), *RUN.names))


class RunDir:
    """One run's folder, locked while in use.

    A folder with a state inside is gone on with if the settings that matter are equal; otherwise UserError names them.
    overwrite: begin anew, and remove what an earlier run left there. UserError, and nothing touched, for a folder that is
    neither empty nor a run's.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, object],
        overwrite: bool = False,
        writes: bool = True,
        defaults: Mapping[str, object] | None = None,
        kind: Kind = RUN,
        derived: frozenset[str] = frozenset(),
    ):
        self.path, self.kind = Path(path), kind
        self.settings = dict(settings)
        self.defaults = dict(defaults or {})  # of settings that are younger than the run
        self.derived = derived  # settings that follow from others: nobody gave them
        self.writes = writes  # of several processes only the first writes
        if not writes:
            return
        self._look(overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out: cannot make the folder {self.path} ({error.strerror}); choose another") from error
        self._lock = _lock(self.path)
        self._logs: list[Log] | None = None  # opened by the first line, when lost work has been forgotten
        try:
            self._look(overwrite)  # again: another process may have been here meanwhile
            self._open(overwrite)
        except OSError as error:
            self.close()
            raise UserError(f"out: cannot write in {self.path} ({error.strerror}); choose another folder") from error
        except BaseException:
            self.close()
            raise

    def _look(self, overwrite: bool) -> None:
        """UserError, and nothing touched, where the folder is somebody else's, or another run's and not to be replaced."""
        require_ours(self.path, RUN)
        config = self.path / "config.yaml"
        if not overwrite and config.exists():
            self._same_question(_settings(config))

    def _open(self, overwrite: bool) -> None:
        if overwrite:  # whatever kind of run was here before
            mark(self.path, RUN_OF_STUDENTS)
            remove_ours(self.path, RUN_OF_STUDENTS)
        mark(self.path, self.kind)
        config = self.path / "config.yaml"
        if not config.exists():
            atomic_text(config, yaml.safe_dump(self.settings, sort_keys=False))
        atomic_text(self.path / "environment.json", json.dumps(environment(), indent=1))

    def _same_question(self, before: Mapping[str, object]) -> None:
        if changed := self._changed(before):
            raise UserError(
                f"{self.path} holds a run with other settings ({changed}); choose another out, or pass --overwrite"
            )

    def _decisive(self) -> str:
        return yaml.safe_dump({k: v for k, v in self.settings.items() if k not in FREE}, sort_keys=False)

    def _changed(self, before: Mapping[str, object]) -> str:
        """The first settings that were others and that decide what is learned, in words; empty if there are none."""
        # A setting that is younger than the run, or that it had no use for, had its default.
        before, now = self.defaults | dict(before), self.defaults | self.settings
        keys = [k for k in now if k not in FREE and not _equal(k, before.get(k), now[k])]
        keys = [k for k in keys if k not in self.derived] or keys
        return ", ".join(f"{k} was {before.get(k)!r}, now {now[k]!r}" for k in keys[:4])

    def restore(self) -> dict[str, object] | None:
        """The last saved state, or None for a fresh run. Metric lines of work that was lost since are dropped."""
        path = self.path / LAST
        try:
            state = load_state(path) if path.exists() else None
        except UNREADABLE as error:
            raise UserError(f"{path}: the saved state is damaged ({one_line(error)}); {BEGIN_ANEW}") from error
        if state is not None and not (isinstance(state, dict) and isinstance(state.get("step"), int)):
            raise UserError(f"{path}: expected the saved state of a run, got another's torch file; {BEGIN_ANEW}")
        made_by = state.pop(MADE_BY, None) if state else None  # states of older versions do not say
        if isinstance(made_by, str) and (changed := self._changed(yaml.safe_load(made_by))):
            raise UserError(f"{path}: is the state of a run with other settings ({changed}); {BEGIN_ANEW}")
        self._forget_after(step_of(state) if state else 0)
        return state

    def save(self, state: Mapping[str, object]) -> None:
        """Replace last.ckpt, atomically; it says by which settings it was made."""
        if not self.writes:
            return
        save_state(self.path / LAST, dict(state) | {MADE_BY: self._decisive()})

    def keep_unreadable(self, images: Mapping[str, str]) -> None:
        """Write down which images a run stopped at, id -> reason: giving the command again does not forget them."""
        if self.writes:
            atomic_text(self.path / UNREADABLE_IMAGES, sealed({"images": dict(images)}))

    def kept_unreadable(self) -> dict[str, str]:
        """What `keep_unreadable` wrote, or nothing. UserError where it is damaged."""
        path = self.path / UNREADABLE_IMAGES
        if not path.exists():
            return {}
        try:
            images = unsealed(path.read_text())["images"]
            if not isinstance(images, Mapping):
                raise TypeError(f"expected images and reasons, got {type(images).__name__}")
            return {str(name): str(reason) for name, reason in images.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is damaged ({one_line(error)}); remove it") from error

    def forget_unreadable(self) -> None:
        """Remove what `keep_unreadable` wrote: the state has it now, or the images can be read again."""
        if self.writes:
            (self.path / UNREADABLE_IMAGES).unlink(missing_ok=True)

    def log(self, record: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl, and to the other logs that were asked for."""
        if not self.writes:
            return
        append_line(self.path / METRICS, json.dumps(dict(record)))
        if self._logs is None:
            self._logs = open_logs(str(self.settings.get("log", "jsonl")), self.path / METRICS, step_of(record))
        for log in self._logs:
            log.add(record)

    def note(self, record: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl alone: words, which the other logs do not take."""
        if self.writes:
            append_line(self.path / METRICS, json.dumps(dict(record)))

    def _forget_after(self, step: int) -> None:
        if self.writes:
            forget_after(self.path / METRICS, step)

    def close(self) -> None:
        """Close the logs and release the lock."""
        if self.writes:
            for log in self._logs or ():
                log.close()
            self._lock.close()


class StudentDir:
    """The folder of one of several students, `students/NAME` in the run's: the figures and files of a run of its own."""

    def __init__(self, run: Path, name: str, log: str, writes: bool):
        self.path, self.log_names, self.writes = run / STUDENTS / name, log, writes
        self._table: Log | None = None
        if writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                sweep(self.path, OF_A_STUDENT)
            except OSError as error:
                raise UserError(
                    f"out: cannot make the folder {self.path} ({error.strerror}); choose another"
                ) from error

    def forget_after(self, step: int) -> None:
        """Drop metric lines of work that was lost."""
        if self.writes:
            forget_after(self.path / METRICS, step)

    def log(self, record: Mapping[str, object]) -> None:
        """Append one line to the student's metrics.jsonl, and to metrics.csv if the run has one."""
        if not self.writes:
            return
        self.note(record)
        if self._table is None and "csv" in names(self.log_names):
            self._table = Table(self.path / METRICS, step_of(record))
        if self._table is not None:
            self._table.add(record)

    def note(self, record: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl alone: words."""
        if self.writes:
            append_line(self.path / METRICS, json.dumps(dict(record)))


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of a metrics.jsonl later than `step`: they belong to work that was lost and will be done again."""
    if path.exists():
        kept = [json.dumps(record) for record in records(path) if step_of(record) <= step]
        atomic_text(path, "".join(f"{line}\n" for line in kept))


def _equal(name: str, before: object, now: object) -> bool:
    """Whether a setting is what it was. `photos`, `./photos/` and a link to it are one place; the digest says the rest."""
    if name == "images" and isinstance(before, str) and isinstance(now, str):
        return before == now or os.path.realpath(os.path.expanduser(before)) == os.path.realpath(
            os.path.expanduser(now)
        )
    return before == now


def _lock(folder: Path) -> IO[bytes]:
    """Hold `folder/.lock` until closed or until the process dies; UserError when another process holds it."""
    try:
        file = open(folder / ".lock", "ab")  # noqa: SIM115 - held for the life of the run
    except OSError as error:
        raise UserError(f"out: cannot write in {folder} ({error.strerror}); choose another folder") from error
    try:
        if locked(file):
            return file
    except OSError:
        pass
    file.close()
    raise UserError(f"out: {folder} is in use by another process; wait for it or choose another folder")


def _program() -> list[str]:
    """How this process was called: a script's name, or `python -m PACKAGE`."""
    path = Path(sys.argv[0])
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def without_overwrite(argv: Sequence[str]) -> list[str]:
    """A command's words as they repeat it. Overwriting is for today: whoever pastes the command must not wipe what it made."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--overwrite":
            following = next(words, "true")
            kept += [] if following in ("true", "false") else [following]
        elif not word.startswith("--overwrite="):
            kept.append(word)
    return kept


def environment() -> dict[str, object]:
    """Versions, machine and command of this process."""
    import platform

    names = ("ssl-kd", "torch", "torchvision", "timm", "lightly", "faiss-cpu", "numpy")
    return {
        "command": shlex.join([*_program(), *without_overwrite(sys.argv[1:])]),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": {name: installed(name) for name in names},
    }


def _settings(config: Path) -> Mapping[str, object]:
    """What a run's config.yaml says; UserError where somebody's hand left something else in it."""
    try:
        found = yaml.safe_load(config.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{config} is no YAML ({one_line(error)}); mend it, choose another out, or pass --overwrite"
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(
            f"{config}: expected the settings of a run, got {one_line(found, 60)!r}; choose another out, or pass --overwrite"
        )
    return found
