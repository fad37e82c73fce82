"""SIGKILL at random moments: the run that goes on ends with the bits of the unbroken one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--students"]], ids=["one student", "students that follow each other"])
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bits(more):
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill", "--kills", "24", *more],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr
    assert "every round ended with the bits of the unbroken run" in out.stdout
