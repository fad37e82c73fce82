"""Several processes give the same results in the same order as one, and a killed evaluation goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ssl_kd.checkpoints.saving import save_student
from ssl_kd.errors import UserError
from ssl_kd.eval.evaluation import evaluate
from ssl_kd.eval.evaluators.choices import choices
from ssl_kd.eval.runner import workers
from ssl_kd.eval.runner.build import open_encoders, open_task
from ssl_kd.eval.runner.cells import Bench, Settings, by_task, plan
from ssl_kd.eval.runner.config import EncoderConfig, EvalConfig, TaskConfig
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two folder tasks and a student file."""
    home, rng = tmp_path_factory.mktemp("lab"), np.random.default_rng(0)
    for task in ("hues", "tones"):
        for split, n in (("train", 8), ("test", 4)):
            for label in range(3):
                folder = home / task / split / f"{task}{label}"
                folder.mkdir(parents=True)
                for i in range(n):
                    pixels = rng.integers(0, 90, (16, 16, 3)) + 80 * np.eye(3, dtype=int)[label]
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    pre = Preprocessing(size=32, resize=32, crop=32)
    save_student(build("test_resnet", preprocessing=pre), home / "student.safetensors")
    return home


def settings(lab, out, **changes):
    return EvalConfig(
        str(out),
        [str(lab / "hues"), str(lab / "tones")],
        [str(lab / "student.safetensors"), {"name": "random", "like": "student", "seed": 3}],
        ["knn", "linear/quick-lbfgs", "agreement"],
        ood=[["hues", "tones"]],
        report=False,
        **changes,
    )


def figures(out):
    """Everything in results.jsonl but how long it took."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


class AtOnce:
    """A pool that does each job when it is handed in, in this very process."""

    def __init__(self, size, context, begin, arguments):
        begin(*arguments)

    def submit(self, what, job):
        from concurrent.futures import Future

        done = Future()
        try:
            done.set_result(what(job))
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, **_):
        pass

    _processes = None


def test_the_work_of_a_process_is_found_by_the_evaluation(lab, tmp_path, monkeypatch):
    evaluate(settings(lab, tmp_path / "one"), quiet=True)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", AtOnce)
    monkeypatch.setattr(workers, "_watch", lambda parent: None)
    began = torch.get_num_threads()
    jobs = []
    monkeypatch.setattr(
        Bench, "cell", lambda self, job, whole=Bench.cell: jobs.append((id(self), job)) or whole(self, job)
    )
    evaluate(settings(lab, tmp_path / "two", workers=2), quiet=True)
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    assert torch.get_num_threads() == began == 1
    # the processes did every job once, the evaluation only picked them up
    first, last = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
    assert [job for _, job in first] == [job for _, job in last]
    assert len({bench for bench, _ in first} | {bench for bench, _ in last}) == 2


@pytest.mark.slow
def test_one_open_job_needs_no_processes(lab, tmp_path, monkeypatch):
    evaluate(settings(lab, tmp_path), quiet=True)

    def never(*_):
        raise AssertionError("processes for nothing")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", never)
    evaluate(settings(lab, tmp_path, workers=4), quiet=True)


def test_features_come_before_the_cells_that_need_them(lab, tmp_path):
    tasks = [open_task(TaskConfig(path=str(lab / name))) for name in ("hues", "tones")]
    jobs, _ = plan(tasks, ["a", "b"], choices(["knn"]), [("hues", "tones")])
    assert list(by_task(jobs)) == [("hues", "a"), ("hues", "b"), ("tones", "a"), ("tones", "b")]
    assert [job.title for job in jobs] == ["hues"] * 2 + ["tones"] * 2 + ["hues vs tones"] * 2


@pytest.mark.slow
def test_two_processes_agree_with_one_to_the_last_digit(lab, tmp_path):
    for number in (1, 2):
        evaluate(settings(lab, tmp_path / str(number), workers=number), quiet=True)
    assert figures(tmp_path / "1") == figures(tmp_path / "2")
    assert (tmp_path / "2" / "results.md").read_text().split(" images/s")[0]


@pytest.mark.slow
def test_an_error_in_a_process_is_the_evaluations_own(lab, tmp_path):
    tasks, encoders = [TaskConfig(path=str(lab / "hues"))], [EncoderConfig(weights=str(lab / "student.safetensors"))]
    opened = open_encoders(encoders)
    bench = Bench(
        opened,
        {"hues": open_task(tasks[0])},
        "student",
        Settings(cells=tmp_path / "cells", features=tmp_path / "features", quiet=True),
    )
    jobs, _ = plan(list(bench.tasks.values()), ["student"], choices(["knn", "linear/quick-lbfgs"]))
    lost = [replace(tasks[0], path=str(tmp_path / "gone"))]
    with pytest.raises(UserError, match="gone: no such folder or archive"):
        workers.work(bench, jobs, lost, encoders, 2)


@pytest.mark.slow
def test_a_killed_evaluation_leaves_no_process_behind_and_goes_on(lab, tmp_path):
    whole = settings(lab, tmp_path / "out", workers=2, quiet=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(whole)))
    command = [sys.executable, "-m", "eval", str(tmp_path / "config.yaml")]
    began = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not list((tmp_path / "out" / "cells").glob("*.npz")) and began.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    children = [int(pid) for pid in _children(began.pid)]
    began.send_signal(signal.SIGKILL)
    began.wait(30)
    assert children
    until = time.monotonic() + 30
    while any(_alive(pid) for pid in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in children)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    evaluate(settings(lab, tmp_path / "one"), quiet=True)
    assert figures(tmp_path / "out") == figures(tmp_path / "one")


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
