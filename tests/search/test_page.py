"""docs/search.md: its Python runs, and its service answers on loopback."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from small_index import photos, weights

from ssl_kd.search.index import Index

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
FIRST, SERVICE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights(tmp_path / "student.safetensors")
    photos(tmp_path / "photos", range(6))
    photos(tmp_path / "more", range(6, 8))
    return tmp_path


def test_the_lines_of_the_page_run(lab, capsys):
    width = Index.build("w.index", "photos/", "student.safetensors").space.width
    vectors = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    scope = {"vectors": vectors}
    exec(FIRST, scope)
    assert scope["rows"].shape == (2, 3)
    assert "photos/3.png [('photos/3.png', 0.0)" in capsys.readouterr().out


def asked(port, data, query=""):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{query}", data=data)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_service_answers_and_refuses_what_is_no_picture(lab):
    Index.build("photos.index", "photos/", "student.safetensors")
    assert len(SERVICE.strip().splitlines()) <= 40
    (lab / "serve.py").write_text(SERVICE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "serve.py", "photos.index", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if not probe.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(0.1)
            status, hits = asked(port, (lab / "photos" / "3.png").read_bytes(), "?k=2")
            assert status == 200
            assert hits[0]["name"] == "photos/3.png"
            assert len(hits) == 2
            status, refusal = asked(port, b"no picture")
            assert status == 400
            assert "not a picture" in refusal["error"]
            assert asked(port, b"x", "?k=many")[0] == 400
        finally:
            server.terminate()
