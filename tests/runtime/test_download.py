"""A download arrives whole and checked, or not at all; tried on a small local server that misbehaves on demand."""

import functools
import hashlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ssl_kd.runtime.download import TRIES, Check, DownloadError, MissingError, digest_of, download
from ssl_kd.runtime.files import sealed

BODY = bytes(range(256)) * 12_000  # 3,072,000 bytes: several blocks
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers /MODE/...; `server.asked` lists (path, Range, If-Range), `server.count` counts per path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        server, mode = self.server, self.path.split("/")[1]
        server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        server.count[self.path] = server.count.get(self.path, 0) + 1
        getattr(self, "serve_" + mode.replace("-", "_"))(server.count[self.path])

    def log_message(self, *anything):
        pass

    def answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def ranged(self, body, tag='"one"', until=None):
        """Answer as a good server does; `until`: break off after so many bytes."""
        start, status, extra = 0, 200, {}
        wanted, same = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted and same in (None, tag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.answer(416, Content_Range=f"bytes */{len(body)}")
                return
            status, extra = 206, {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        rest = body[start:]
        self.answer(status, rest[:until], length=len(rest), ETag=tag, **extra)

    def serve_good(self, n):
        self.ranged(BODY)

    def serve_no_range(self, n):
        self.answer(200, BODY if n > 1 else BODY[:1_000_000], length=len(BODY), ETag='"one"')

    def serve_breaks(self, n):
        self.ranged(BODY, until=700_000)

    def serve_breaks_untagged(self, n):
        self.answer(200, BODY if n > 1 else BODY[:900_000], length=len(BODY))

    def serve_stalls(self, n):
        self.ranged(BODY, until=0)

    def serve_changes(self, n):
        self.ranged(BODY[::-1] if n == 1 else BODY, tag=f'"{n}"', until=500_000 if n == 1 else None)

    def serve_wrong_part(self, n):
        if n > 1 and self.headers.get("Range"):
            self.answer(206, BODY[7:], Content_Range=f"bytes 7-{len(BODY) - 1}/{len(BODY)}")
        else:
            self.ranged(BODY, until=500_000 if n == 1 else None)

    def serve_other(self, n):
        self.ranged(BODY[:-1] + b"!")

    def serve_short(self, n):
        self.ranged(BODY[:1000])

    def serve_page(self, n):
        self.answer(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")

    def serve_endless(self, n):
        self.answer(200, BODY, length=False)

    def serve_half(self, n):
        self.answer(200, BODY[:1_000_000], length=False)

    def serve_in_chunks(self, n, end=b"0\r\n\r\n"):
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:5000], BODY[5000:]))
        self.answer(200, chunks + end, length=False, Transfer_Encoding="chunked")

    def serve_cut_chunks(self, n):
        self.serve_in_chunks(n, b"")

    def raw(self, text):
        self.wfile.write(text.encode("latin-1"))

    def serve_colours(self, n):
        self.raw("HTTP/1.1 403 \x1b[31mred\x07\x9b31m\r\n\r\n")

    def serve_two_lines(self, n):
        self.raw("HTTP/1.1 200 fine\rssl-kd: all is well\r\nContent-Length: x\r\n\r\n")

    def serve_long_number(self, n):
        self.raw(f"HTTP/1.1 200 OK\r\nContent-Length: {'9' * 5000}\r\n\r\n")

    def serve_odd_number(self, n):
        self.raw("HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n")

    def serve_far_port(self, n):
        self.answer(302, Location="http://127.0.0.1:99999999/file")

    def serve_odd_host(self, n):
        self.answer(302, Location="http://[::1/file")

    def serve_long_label(self, n):
        self.answer(302, Location=f"http://{'a' * 80}.invalid/file")

    def serve_colourful_redirect(self, n):
        self.raw("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\x1b[31mred\r\n\r\n")

    def serve_busy(self, n):
        self.answer(503) if n < 3 else self.ranged(BODY)

    def serve_down(self, n):
        self.answer(500)

    def serve_status(self, n):
        self.answer(int(self.path.split("/")[2]))

    def serve_redirect(self, n):
        self.answer(302, Location="/good/file")

    def serve_loop(self, n):
        self.answer(302, Location=self.path)

    def serve_to_file(self, n):
        self.answer(302, Location="file:///etc/hostname")

    def serve_to_ftp(self, n):
        self.answer(302, Location="ftp://127.0.0.1/file")

    def serve_hangs(self, n):
        self.answer(200, b"x", length=100)
        time.sleep(1.5)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the game."""


@pytest.fixture
def server(monkeypatch):
    for name in ("SSL_KD_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.count = [], {}
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "file.pth"


def get(url, target, check=None):
    return download(url, target, check, quiet=True, timeout=0.5, pause=0.0)


def leave_part(target, part, url, **about):
    """What a killed download leaves: the part, and the note that says whose it is and what of it is sure."""
    target.with_name("file.pth.part").write_bytes(part)
    note = {"url": url, "validator": '"one"', "bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}
    target.with_name("file.pth.part.json").write_text(sealed(note | about))


def leftovers(target):
    return sorted(p.name for p in target.parent.iterdir() if p.suffix != ".lock")


def test_a_file_arrives_whole_and_leaves_nothing_else(server, target):
    assert get(f"{server.url}/good/file", target, Check(len(BODY), SHA256, MD5[:8])) == SHA256
    assert target.read_bytes() == BODY
    assert leftovers(target) == ["file.pth"]
    assert digest_of(target) == SHA256


def test_a_redirect_is_followed(server, target):
    assert get(f"{server.url}/redirect/file", target) == SHA256
    assert [path for path, *_ in server.asked] == ["/redirect/file", "/good/file"]


def test_a_connection_that_keeps_breaking_is_taken_up_where_it_broke(server, target):
    assert get(f"{server.url}/breaks/file", target) == SHA256
    starts = [asked for _, asked, _ in server.asked]
    assert starts == [None] + [
        f"bytes={700_000 * i}-" for i in range(1, 5)
    ]  # more breaks than TRIES, all with progress
    assert {same for _, _, same in server.asked[1:]} == {'"one"'}


def test_a_killed_download_is_taken_up_by_the_next_call(server, target):
    target.parent.mkdir()
    leave_part(target, BODY[:1000], f"{server.url}/stalls/file")
    with pytest.raises(DownloadError, match="1,000 bytes are kept"):
        get(f"{server.url}/stalls/file", target)
    assert {(asked, same) for _, asked, same in server.asked} == {("bytes=1000-", '"one"')}
    assert not target.exists()
    assert get(f"{server.url}/good/file", target, Check(sha256=SHA256)) == SHA256
    assert server.asked[-1] == ("/good/file", "bytes=1000-", None)  # another address: only the digest can vouch
    assert leftovers(target) == ["file.pth"]


def test_a_part_that_nothing_vouches_for_is_begun_again(server, target):
    target.parent.mkdir()
    leave_part(target, b"something else", f"{server.url}/good/other")
    assert get(f"{server.url}/good/file", target) == SHA256
    assert server.asked == [("/good/file", None, None)]


def test_a_complete_part_is_not_fetched_again(server, target):
    target.parent.mkdir()
    leave_part(target, BODY, "elsewhere")
    assert get(f"{server.url}/good/file", target, Check(sha256=SHA256)) == SHA256
    assert target.read_bytes() == BODY


def test_a_part_longer_than_the_file_is_begun_again(server, target):
    target.parent.mkdir()
    leave_part(target, BODY + b"more", "elsewhere")
    assert get(f"{server.url}/good/file", target, Check(sha256=SHA256)) == SHA256


def test_a_server_without_ranges_sends_the_whole_again(server, target):
    assert get(f"{server.url}/no-range/file", target) == SHA256
    assert len(server.asked) == 2


def test_without_a_tag_or_a_digest_nothing_is_resumed(server, target):
    assert get(f"{server.url}/breaks-untagged/file", target) == SHA256
    assert [asked for _, asked, _ in server.asked] == [None, None]


def test_a_file_that_changes_on_the_server_is_not_glued_together(server, target):
    assert get(f"{server.url}/changes/file", target) == SHA256


def test_the_wrong_part_is_not_glued_on(server, target):
    assert get(f"{server.url}/wrong-part/file", target) == SHA256


def flipped(data, at=500):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# A part that cannot be gone on from, with its note: the file must be fetched from its beginning, or the part left alone.
SPOILT = {
    "a flipped bit": (flipped(BODY[:1000]), {"sha256": hashlib.sha256(BODY[:1000]).hexdigest()}),
    "cut": (BODY[:999], {"bytes": 1000, "sha256": hashlib.sha256(BODY[:1000]).hexdigest()}),
    "of an older version": (BODY[:1000], {"bytes": 0}),
    "of another address": (BODY[:1000], {"url": "http://127.0.0.1/elsewhere"}),
    "of another version": (BODY[:1000], {"validator": '"two"'}),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_part_is_never_glued_on(what, server, target):
    """No digest is known: only the note can tell."""
    part, about = SPOILT[what]
    target.parent.mkdir()
    leave_part(target, part, **{"url": f"{server.url}/good/file"} | about)
    assert get(f"{server.url}/good/file", target) == SHA256


def test_bytes_behind_those_that_are_sure_are_fetched_again(server, target):
    target.parent.mkdir()
    leave_part(target, BODY[:1000] + b"written, not noted", f"{server.url}/good/file", bytes=1000,
               sha256=hashlib.sha256(BODY[:1000]).hexdigest())  # fmt: skip
    assert get(f"{server.url}/good/file", target) == SHA256
    assert server.asked == [("/good/file", "bytes=1000-", '"one"')]


@pytest.mark.parametrize(
    "note", [None, "{}", "[]", "theirs", flipped(sealed({"url": "x", "validator": "y"}).encode(), 9)]
)
@pytest.mark.parametrize("source", ["web", "disk"])
def test_a_part_of_somebody_else_is_left_alone(note, source, server, target, tmp_path):
    target.parent.mkdir()
    target.with_name("file.pth.part").write_bytes(b"half of another program's download")
    if note is not None:
        target.with_name("file.pth.part.json").write_bytes(note if isinstance(note, bytes) else note.encode())
    before = {p.name: p.read_bytes() for p in target.parent.iterdir()}
    (tmp_path / "copy").write_bytes(BODY)
    with pytest.raises(DownloadError, match=r"file\.pth\.part: is in the way.* remove it"):
        get(f"{server.url}/good/file" if source == "web" else str(tmp_path / "copy"), target, Check(sha256=SHA256))
    assert {p.name: p.read_bytes() for p in target.parent.iterdir() if p.suffix != ".lock"} == before


def test_a_file_that_bears_the_locks_name_keeps_its_bytes(server, target):
    target.parent.mkdir()
    target.with_name("file.pth.lock").write_text("theirs")
    get(f"{server.url}/good/file", target)
    assert target.with_name("file.pth.lock").read_text() == "theirs"


# What vouches that all of it came, where the server does not say how long the file is; the connection always ends.
VOUCHED = {
    "a digest": ("endless", Check(sha256=SHA256), True),
    "the first digits of one": ("endless", Check(md5=MD5[:8]), True),
    "the published size": ("endless", Check(size=len(BODY)), True),
    "chunks with an end": ("in-chunks", None, True),
    "nothing": ("endless", None, False),
    "nothing, and half of it came": ("half", None, False),
    "a digest, and half of it came": ("half", Check(sha256=SHA256), False),
    "a size, and half of it came": ("half", Check(size=len(BODY)), False),
    "chunks without an end": ("cut-chunks", None, False),
}


@pytest.mark.parametrize("what", VOUCHED)
def test_that_the_connection_ended_does_not_make_a_file_whole(what, server, target):
    mode, check, whole = VOUCHED[what]
    if whole:
        assert get(f"{server.url}/{mode}/file", target, check) == SHA256
        assert leftovers(target) == ["file.pth"]
        return
    with pytest.raises(DownloadError) as caught:
        get(f"{server.url}/{mode}/file", target, check)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "mode",
    ["colours", "long-number", "odd-number", "far-port", "odd-host", "long-label", "colourful-redirect", "status/404",
     "two-lines"],
)  # fmt: skip
def test_nothing_that_a_server_says_reaches_the_terminal_raw_or_as_a_traceback(mode, server, target):
    with pytest.raises(DownloadError) as caught:
        get(f"{server.url}/{mode}/file", target)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://host:port/x", "http://a\x1b[31mb/x", "\x1b[31m.pth", "ftp://\x1b]0;x"]
)
def test_an_address_that_is_none_is_one_printable_line(url, target, monkeypatch):
    monkeypatch.delenv("SSL_KD_OFFLINE", raising=False)
    with pytest.raises(DownloadError) as caught:
        get(url, target)
    assert str(caught.value).isprintable()


def test_a_busy_server_is_asked_again(server, target):
    assert get(f"{server.url}/busy/file", target) == SHA256
    assert len(server.asked) == 3


def test_patience_ends(server, target):
    with pytest.raises(DownloadError, match=f"{TRIES} tries brought nothing: the server answered 500"):
        get(f"{server.url}/down/file", target)
    assert len(server.asked) == TRIES


def test_silence_is_not_waited_for(server, target):
    began = time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        download(f"{server.url}/hangs/file", target, quiet=True, timeout=0.1, pause=0.0)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("mode", "check", "reason"),
    [
        ("other", Check(sha256=SHA256), "sha256 is .*, expected .*thrown away"),
        ("other", Check(sha256=SHA256[:8]), "sha256 is"),
        ("other", Check(md5=MD5[:8]), "md5 is"),
        ("short", Check(size=len(BODY)), "expected 3,072,000 bytes, but the server has 1,000"),
        ("page", None, "web page"),
        ("loop", None, "would lead to an infinite loop|redirect"),
        ("to-file", None, "file"),
        ("to-ftp", None, "ftp"),
        ("status/403", None, "403 Forbidden"),
    ],
)
def test_another_file_than_the_published_one_is_refused_and_removed(server, target, mode, check, reason):
    target.parent.mkdir()
    target.write_bytes(b"an older copy")
    with pytest.raises(DownloadError, match=reason) as caught:
        get(f"{server.url}/{mode}/file", target, check)
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"an older copy"
    assert leftovers(target) == ["file.pth"]


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_gone_is_told_apart(server, target, status):
    with pytest.raises(MissingError, match=str(status)):
        get(f"{server.url}/status/{status}", target)
    assert len(server.asked) == 1


def test_nobody_listening_is_one_line(target):
    with pytest.raises(DownloadError, match="refused") as caught:
        get("http://127.0.0.1:9/file", target)
    assert "\n" not in str(caught.value)


def test_offline_asks_no_server_and_writes_nothing(monkeypatch, server, target, tmp_path):
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"not fetched, for SSL_KD_OFFLINE is set"):
        get(f"{server.url}/file", target)
    assert server.asked == []
    assert not any(tmp_path.iterdir())


def test_https_is_never_left_for_http(monkeypatch, server, target):
    from urllib.request import Request

    from ssl_kd.runtime.download import _Redirects

    with pytest.raises(DownloadError, match="from https to http"):
        _Redirects().redirect_request(Request("https://a/file"), None, 302, "Found", {}, "http://a/file")


@pytest.mark.parametrize("scheme", ["ftp", "data", "gopher"])
def test_other_schemes_are_refused(target, scheme):
    with pytest.raises(DownloadError, match=f"not {scheme}"):
        get(f"{scheme}://host/file", target)


def test_folders_are_read_by_path_and_by_file_address(tmp_path, target):
    source = tmp_path / "with space" / "a=b%20.pth"
    source.parent.mkdir()
    source.write_bytes(BODY)
    assert get(str(source), target) == SHA256
    assert get(source.as_uri(), target, Check(sha256=SHA256)) == SHA256
    with pytest.raises(MissingError, match="no such file"):
        get(str(source) + "x", target)
    with pytest.raises(DownloadError, match="sha256 is"):
        get(str(source), target, Check(sha256="0" * 64))
    assert target.read_bytes() == BODY


def test_those_who_wait_for_another_download_do_not_repeat_it(server, target):
    fcntl = pytest.importorskip("fcntl", reason="this platform has no file locks")
    given = []
    threads = [threading.Thread(target=lambda: given.append(get(f"{server.url}/good/file", target))) for _ in range(4)]
    target.parent.mkdir()
    with open(target.with_name("file.pth.lock"), "w") as lock:  # until here is left, all four wait at the door
        fcntl.flock(lock, fcntl.LOCK_EX)
        for thread in threads:
            thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert given == [SHA256] * 4
    assert len(server.asked) == 1


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DownloadError, match="cannot be written"):
        get(f"{server.url}/good/file", tmp_path / "locked" / "file.pth")


def test_a_file_in_the_way_of_the_folder_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        get(f"{server.url}/good/file", tmp_path / "file" / "file.pth")


def test_a_full_disk_is_noticed_before_the_first_byte(server, target, monkeypatch):
    import shutil
    from collections import namedtuple

    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(10, 9, 1))
    with pytest.raises(DownloadError, match="1 are free; set SSL_KD_CACHE"):
        get(f"{server.url}/good/file", target)
    assert leftovers(target) == []


def test_progress_ends_at_the_whole(server, target, capsys):
    download(f"{server.url}/good/file", target, pause=0.0)
    assert "file.pth: 4 of 4 MB" in capsys.readouterr().err
