"""hf-hub:ORG/NAME against a server of our own: whole, redirected, cut, changed; the mirror and the offline switch."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import layouts
import pytest
from safetensors.torch import save

from ssl_kd.checkpoints import hub
from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.errors import CheckpointError

COMMIT = "c" * 40
CONFIG = {"model_type": "dinov2", "hidden_size": 128, "num_attention_heads": 2, "layer_norm_eps": 1e-6}
README = b"---\nlicense: other\nlicense_name: research-only-licence\n---\n# A teacher"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of its server, for one repository."""

    files: ClassVar[dict[str, bytes]] = {}
    redirected = False
    cut = False
    asked: ClassVar[list[str]] = []
    etags: ClassVar[dict[str, str]] = {}

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.asked.append(self.path)
        if self.path.startswith("/api/models/lab/teacher"):
            return self.send(
                json.dumps({"id": "lab/teacher", "sha": COMMIT, "siblings": self.siblings()}).encode(), body
            )
        name = self.path.rpartition("/")[2]
        if name not in self.files or "/lab/teacher/" not in self.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if "/lab/teacher/" not in self.path else "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = self.files[name]
        if self.redirected and not self.path.startswith("/cdn"):
            self.send_response(302)
            self.named(name, content)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Location", f"/cdn{self.path}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.named(name, content)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            half = self.cut and name.endswith("safetensors")
            self.wfile.write(content[: len(content) // 2] if half else content)
            self.close_connection = True
        return None

    def named(self, name, content):
        tag = self.etags.get(name) or hashlib.sha256(content).hexdigest()
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Linked-ETag", f'"{tag}"')

    def siblings(self):
        return [{"rfilename": name} for name in [*self.files, "training.log"]]

    def send(self, content, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    from huggingface_hub import constants

    state = {name: tensor.contiguous() for name, tensor in layouts.huggingface(second=True)[0].items()}
    kind = type("Handler", (Hub,), {"asked": [], "etags": {}})
    kind.files = {"config.json": json.dumps(CONFIG).encode(), "README.md": README, "model.safetensors": save(state)}
    running = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("SSL_KD_MIRROR", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.delenv("SSL_KD_OFFLINE", raising=False)
    yield kind
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def only_mirror(monkeypatch):
    """The publisher itself must not be asked by a test."""
    bring = hub.bring
    monkeypatch.setattr(
        hub, "bring", lambda repo, revision, endpoint: bring(repo, revision, endpoint or "http://127.0.0.1:9")
    )


@pytest.mark.parametrize("redirected", [False, True])
def test_a_repository_is_brought_whole_and_then_read_from_the_cache(server, only_mirror, redirected, monkeypatch):
    server.redirected = redirected
    encoder = load_teacher("hf-hub:lab/teacher")
    assert encoder.origin.startswith("lab/teacher, Hugging Face DINOv2")
    assert encoder.licence == "research-only-licence"
    assert not any("training.log" in path for path in server.asked)
    server.asked.clear()
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    assert load_teacher("hf-hub:lab/teacher").digest == encoder.digest
    assert inspect("hf-hub:lab/teacher@main").problem is None
    assert server.asked == []


@pytest.mark.slow
def test_a_file_that_is_cut_on_the_way_is_no_teacher(server, only_mirror):
    server.cut = True
    with pytest.raises(CheckpointError, match="hf-hub:lab/teacher: ") as error:
        load_teacher("hf-hub:lab/teacher")
    assert str(error.value).isprintable()
    server.cut = False
    load_teacher("hf-hub:lab/teacher")


def test_a_file_that_is_not_what_the_hub_named_is_refused(server, only_mirror):
    server.etags["model.safetensors"] = "a" * 64
    with pytest.raises(CheckpointError, match=r"model.safetensors is not the file that the Hub has.*expected aaaa"):
        load_teacher("hf-hub:lab/teacher")


def test_a_file_that_rots_in_the_cache_is_refused(server, only_mirror, tmp_path):
    load_teacher("hf-hub:lab/teacher")
    blob = next((tmp_path / "hub").rglob("model.safetensors")).resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not the file that the Hub has.*remove"):
        load_teacher("hf-hub:lab/teacher")


def test_what_the_hub_does_not_have_is_one_line(server, only_mirror):
    with pytest.raises(CheckpointError, match="hf-hub:lab/other: the Hub has no such repository"):
        load_teacher("hf-hub:lab/other")
    del server.files["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"has none of model.safetensors"):
        load_teacher("hf-hub:lab/teacher")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:lab", "hf-hub:lab/a/b", "hf-hub:../x", "hf-hub:lab/x@a/b"])
def test_names_that_are_no_repository_are_refused(name, monkeypatch):
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    with pytest.raises(CheckpointError):
        load_teacher(name)


def test_offline_nothing_is_asked(server, monkeypatch):
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="SSL_KD_OFFLINE is set"):
        load_teacher("hf-hub:lab/teacher")
    assert server.asked == []


def test_a_mirror_may_be_a_folder(tmp_path, monkeypatch):
    folder = tmp_path / "mirror" / "lab" / "teacher"
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in layouts.huggingface(second=True)[0].items()}
    (folder / "model.safetensors").write_bytes(save(state))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("SSL_KD_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    assert load_teacher("hf-hub:lab/teacher").origin.startswith("lab/teacher, ")
