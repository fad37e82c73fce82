"""SIGKILL at random moments: the run that goes on ends with the bits of the unbroken one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bits():
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill", "--kills", "24"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr
    assert "every round ended with the bits of the unbroken run" in out.stdout
