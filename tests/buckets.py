"""An S3 server on loopback (moto) that stalls, truncates, fails and changes objects as it is told; skips plainly without moto."""

import contextlib
import threading
import time
import uuid

import pytest

STALL = 3.0  # seconds, more than the patience that tests have


class Faulty:
    """A WSGI application before another: the next answers to GETs of objects go wrong as `plan` says."""

    def __init__(self, app):
        self.app = app
        self.plan, self.asked = [], []
        self.lock = threading.Lock()

    def __call__(self, environ, start):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self.lock:
            self.asked.append((method, path))
            reads = method == "GET" and path.count("/") > 1 and not path.endswith("/")
            fault = self.plan.pop(0) if self.plan and (reads or self.plan[0] == "refuse to write") else None
            if fault == "refuse to write" and method != "PUT":
                self.plan.insert(0, fault)
                fault = None
        if callable(fault):
            fault()
        if fault == "stall":
            time.sleep(STALL)
        if fault in ("fail", "refuse to write"):
            start("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>made to fail</Message></Error>"]
        answer = self.app(environ, start)
        if fault == "truncate":
            data = b"".join(answer)
            return [data[: len(data) // 2]]
        return answer


class Bucket:
    """A fresh bucket: s3://NAME, what is in it, and the server's plan of faults."""

    def __init__(self, server, client):
        self.server, self.client, self.name = server, client, f"b{uuid.uuid4().hex[:12]}"
        self.url = f"s3://{self.name}"
        client.create_bucket(Bucket=self.name)

    def put(self, key, data):
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def get(self, key):
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def names(self):
        return sorted(one["Key"] for one in self.client.list_objects_v2(Bucket=self.name).get("Contents", []))

    def reads(self, key):
        return sum(one == ("GET", f"/{self.name}/{key}") for one in self.server.asked)


@pytest.fixture(scope="session")
def s3_server():
    pytest.importorskip("s3fs", reason="needs s3fs")
    pytest.importorskip("moto", reason="needs moto[server,s3]")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *anything):
            pass

    faulty = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=Quiet)
    faulty.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield faulty
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def bucket(s3_server, tmp_path, monkeypatch):
    import s3fs
    from botocore.session import Session

    from ssl_kd.data.sources import shard_cache
    from ssl_kd.runtime import stores

    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server.address),
        ("AWS_ACCESS_KEY_ID", "made"),
        ("AWS_SECRET_ACCESS_KEY", "up"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
        ("SSL_KD_CACHE", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSL_KD_OFFLINE", raising=False)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # ours are tested here
    monkeypatch.setattr(stores, "PAUSE", 0.01)
    monkeypatch.setattr(stores, "PIECE", 1 << 12)
    monkeypatch.setattr("ssl_kd.runtime.download.PIECE", 1 << 12)
    monkeypatch.setattr(shard_cache, "PAUSE", 0.01)
    client = Session().create_client("s3", endpoint_url=s3_server.address)
    s3_server.plan, s3_server.asked = [], []
    yield Bucket(s3_server, client)
    s3_server.plan = []
    with contextlib.suppress(AttributeError):
        client.close()
