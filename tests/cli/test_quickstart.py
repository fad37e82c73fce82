"""The quick start runs as typed: every line of docs/quickstart.md in an empty folder, each using what the line before wrote."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/quickstart.md"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quick_start_runs_as_typed(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(lines) >= 7
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssl-kd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ssl_kd "$@"\n')
    (tmp_path / "bin/ssl-kd").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SSL_KD_CACHE": str(tmp_path / "cache")}
    place = tmp_path / "empty"
    place.mkdir()
    for line in lines:
        done = subprocess.run(["bash", "-c", line], cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for code in python:
        done = subprocess.run([sys.executable, "-c", code], cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"
