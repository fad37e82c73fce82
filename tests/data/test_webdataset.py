"""Tar shards are images like any others: numbered, readable at random, or shard by shard from afar; damage is named."""

import functools
import http.server
import itertools
import os
import tarfile
import threading
import zlib

import numpy as np
import pytest
from small_archives import add, encoded, pixels, shard

from ssl_kd.data.augment import SCHEMES
from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.open import open_images
from ssl_kd.data.sources import shard_cache
from ssl_kd.data.sources.webdataset import ShardImages, expand
from ssl_kd.errors import ImagesError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SSL_KD_CACHE", str(folder))
    monkeypatch.setattr(shard_cache, "PAUSE", 0.01)
    for name in ("SSL_KD_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def three(tmp_path):
    """Shards of 4, 5 and 3 pictures; picture i has the pixels of seed i."""
    for n, seeds in enumerate((range(4), range(4, 9), range(9, 12))):
        shard(tmp_path / f"set/train-{n:02d}.tar", seeds)
    return tmp_path / "set"


def same(images, i, seed):
    return np.array_equal(np.asarray(images.read(i)), pixels(seed))


def test_shards_are_images_in_the_order_of_the_list(three):
    spelled = [str(three / "train-{00..02}.tar"), str(three), [three / f"train-0{n}.tar" for n in range(3)]]
    spelled += [f"{three}/train-00.tar::{three}/train-{{01,02}}.tar", f"stream:{three}/train-{{00..02}}.tar"]
    for source in spelled:
        images = open_images(source)
        assert isinstance(images, ShardImages)
        assert len(images) == len(images.ids) == 12
        assert images.ids[4] == "train-01.tar/000004.png"
        assert images.ids[-1] == list(images.ids)[11] == "train-02.tar/000011.png"
        assert all(same(images, i, i) for i in (11, 0, 7, 3, 4))
        assert images.read(5).mode == "RGB"
    assert len({open_images(source).digest for source in spelled}) == 1


def test_an_index_is_made_once_and_again_only_for_a_changed_shard(three, monkeypatch):
    from ssl_kd.data.sources import webdataset

    read = []
    real = webdataset.entries_of
    monkeypatch.setattr(webdataset, "entries_of", lambda path: read.append(os.path.basename(path)) or real(path))
    before = open_images(three).digest
    assert sorted(read) == ["train-00.tar", "train-01.tar", "train-02.tar"]
    assert open_images(three).digest == before
    assert len(read) == 3
    shard(three / "train-01.tar", range(20, 26))
    images = open_images(three)
    assert read[3:] == ["train-01.tar"]
    assert len(images) == 13
    assert images.digest != before
    assert same(images, 4, 20)


def test_a_damaged_index_is_made_anew(three, cache):
    open_images(three)
    for file in cache.rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert same(open_images(three), 11, 11)
    assert not list(cache.rglob("*.part"))


def test_a_cache_that_cannot_be_written_is_said_to_be_it(three, cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("SSL_KD_CACHE", str(cache / "file"))
    with pytest.raises(ImagesError, match="set SSL_KD_CACHE"):
        open_images(three)


def test_of_a_group_the_picture_is_taken(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as out:
        for name in ("a/1.depth.png", "a/1.png", "a/1.seg.png", "a/1.webp", "b/1.PNG", "c.2.png", "c.3.png", "d.txt"):
            add(out, f"./{name}", encoded(1))
        for name in (".hid.png", "__MACOSX/e.png", "../../up.png"):
            add(out, name, encoded(1))
    names = [i.removeprefix("x.tar/") for i in open_images(tmp_path / "x.tar").ids]
    assert names == ["a/1.png", "b/1.PNG", "c.2.png", "c.3.png"]


def test_names_that_climb_out_and_links_write_and_read_nothing(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(5))
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/x.tar", "w") as out:
        add(out, f"{tmp_path}/abs.png", encoded(1))
        add(out, "deep/../../up.png", encoded(2))
        add(out, "sym.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(out, "hard.png", type=tarfile.LNKTYPE, linkname=str(secret))
        add(out, "fifo.png", type=tarfile.FIFOTYPE)
        add(out, "sparse.png", encoded(3), pax_headers={"GNU.sparse.major": "1"})
    images = open_images(tmp_path / "in/x.tar", max_unreadable=0.9)
    given = {name.rpartition("/")[2]: images.read(i) for i, name in enumerate(images.ids)}
    assert {name for name, image in given.items() if image is not None} == {"abs.png"}
    reasons = {name.rpartition("/")[2]: why for name, why in images.unreadable.items()}
    assert reasons == {
        "sym.png": "a link member; only ordinary files are read",
        "hard.png": "a link member; only ordinary files are read",
        "fifo.png": "a pipe member; only ordinary files are read",
        "sparse.png": "a sparse member; only ordinary files are read",
    }
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "secret.png", "x.tar"]


def test_a_picture_beyond_the_limit_is_unreadable_before_it_is_read(tmp_path, monkeypatch):
    from ssl_kd.data.sources import webdataset

    monkeypatch.setattr(webdataset, "MAX_BYTES", len(encoded(0)) - 1)
    images = open_images(shard(tmp_path / "x.tar", [0, 1]), max_unreadable=1.0)
    monkeypatch.setattr(images, "_bytes", None)
    assert images.read(0) is None
    assert "larger than" in images.unreadable["x.tar/000000.png"]


def test_damaged_pictures_are_named_and_a_changed_shard_is_noticed(three):
    path = three / "train-01.tar"
    images = open_images(three, max_unreadable=0.5)
    data = bytearray(path.read_bytes())
    data[data.find(encoded(5)) + 80] ^= 255
    path.write_bytes(data)
    assert images.read(5) is None
    assert "damaged" in images.unreadable["train-01.tar/000005.png"]
    os.truncate(path, 3000)
    assert images.read(8) is None
    assert "changed or cut short" in images.unreadable["train-01.tar/000008.png"]
    os.remove(three / "train-02.tar")
    assert images.read(11) is None
    assert "gone" in images.unreadable["train-02.tar/000011.png"]


def broken(tmp_path):
    shard(tmp_path / "mixed/a.tar", [1])
    (tmp_path / "mixed/b.png").write_bytes(encoded(1))
    (tmp_path / "cut.tar").write_bytes(shard(tmp_path / "x.tar", [0, 1]).read_bytes()[:3000])
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with tarfile.open(tmp_path / "none.tar", "w") as out:
        add(out, "a.cls", b"1")
    return {
        tmp_path / "cut.tar": r"cut.tar: .*cut short.*Mend the shard",
        tmp_path / "gz.tar": "packed by gzip",
        tmp_path / "none.tar": "expected image files",
        tmp_path / "mixed": "keep them apart",
        tmp_path / "y{0..2}.tar": r"y0.tar: no such shard \(3 of 3",
        f"{tmp_path}/x.tar::{tmp_path}/x.tar": "named twice",
        f"{tmp_path}/x{{3..1}}.tar": "numbers that rise",
        f"{tmp_path}/x{{0..999999}}{{0..9}}.tar": "names 10,000,000 shards",
        f"{tmp_path}/x{{0..9999999}}.tar": "at most",
    }


def test_what_holds_no_shards_is_refused_in_one_line(tmp_path):
    for source, reason in broken(tmp_path).items():
        with pytest.raises(ImagesError, match=reason) as caught:
            open_images(source)
        assert "\n" not in str(caught.value)


def test_patterns_count_as_shells_do():
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{0..1}/{x,y}.tar") == ["0/x.tar", "0/y.tar", "1/x.tar", "1/y.tar"]
    assert expand("{8..10}.tar::b.tar") == ["8.tar", "9.tar", "10.tar", "b.tar"]


@pytest.mark.parametrize("stream", ["", "stream:"])
def test_an_epoch_shows_every_picture_once_and_goes_on_at_the_very_batch(three, stream):
    loader = ViewLoader(open_images(f"{stream}{three}/train-{{00..02}}.tar"), SCHEMES["weak"], 8, 5, seed=3)
    whole, rest = list(loader.epoch(1)), list(loader.epoch(1, start=1))
    assert sorted(np.concatenate([v.index for v in whole])) == list(range(12))
    assert [v.index.tolist() for v in rest] == [v.index.tolist() for v in whole[1:]]
    parts = []
    for rank in range(2):
        parts.append(list(loader.epoch(1, share=(rank, 2))))
    for both, one in zip(zip(*parts, strict=True), whole, strict=True):
        assert np.concatenate([v.index for v in both]).tolist() == one.index.tolist()


def test_what_is_held_out_leaves_the_rest_in_its_order_by_shard(three, monkeypatch):
    from ssl_kd.data.sources import base
    from ssl_kd.data.subset import Subset

    monkeypatch.setattr(base, "WINDOW", 1)
    whole = open_images(f"stream:{three}/train-{{00..02}}.tar")
    held = np.array([0, 5, 6, 11])
    for part in (Subset(whole, held, others=True), Subset(whole, held)):
        order = part.order(0, 1)[:]
        assert sorted(order) == list(range(len(part)))
        webdataset = [part.ids[int(i)].partition("/")[0] for i in order]
        assert sum(a != b for a, b in itertools.pairwise(webdataset)) == 2


def test_images_are_held_out_of_a_few_shards_where_these_are_streamed(three, monkeypatch):
    from ssl_kd.data import subset

    monkeypatch.setattr(subset, "FEWEST", 2)
    monkeypatch.setattr(subset, "FEW_SHARDS", 1)
    for spelling, webdataset in ((f"stream:{three}/train-{{00..02}}.tar", 1), (three, 2)):
        held = subset.hold_out(open_images(spelling), 2)[1]
        assert len({name.partition("/")[0] for name in held.ids}) == webdataset


def test_more_pictures_than_memory_holds_are_read_shard_by_shard(three, monkeypatch):
    from ssl_kd.data.sources import webdataset

    monkeypatch.setattr(webdataset, "HELD", 5)
    images = open_images(three)
    assert images.streamed
    assert all(same(images, i, i) for i in (0, 11, 5, 1, 8))
    assert sum(len(e) for e in images._held.values()) <= 5


# ------------------------------------------------------------------------------------------------- from a URL


class Files(http.server.SimpleHTTPRequestHandler):
    """A file server with Range; `server.cut` maps a file's name to how often its answers break off half way."""

    def do_GET(self):
        server, name = self.server, os.path.basename(self.path)
        server.asked.append(name)
        try:
            body = (server.root / name).read_bytes()
        except FileNotFoundError:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{zlib.crc32(body)}"')
        self.end_headers()
        if server.cut.get(name, 0):
            server.cut[name] -= 1
            body = body[: start + (len(body) - start) // 2]
        self.wfile.write(body[start:])

    def log_message(self, *anything):
        pass


@pytest.fixture
def server(three):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.root, server.asked, server.cut = three, [], {}
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_shards_at_a_url_are_the_same_images_and_are_fetched_once(server, three):
    images = open_images(f"{server.url}/train-{{00..02}}.tar")
    assert images.digest == open_images(three).digest
    assert all(same(images, i, i) for i in range(12))
    assert same(open_images(f"{server.url}/train-{{00..02}}.tar"), 6, 6)
    assert sorted(server.asked) == ["train-00.tar", "train-01.tar", "train-02.tar"]


def test_a_url_costs_a_bounded_folder(server, three, cache, monkeypatch):
    monkeypatch.setenv(shard_cache.LIMIT, "0")
    monkeypatch.setattr(shard_cache, "WINDOW", 1)
    for n in range(3, 9):
        shard(three / f"train-{n:02d}.tar", [n])
    images = open_images(f"{server.url}/train-{{00..08}}.tar")
    assert len(list(cache.rglob("*.tar"))) <= shard_cache.LOADERS
    for _ in range(2):
        for i, seed in enumerate([*range(12), *range(3, 9)]):
            assert same(images, i, seed)
            assert len(list(cache.rglob("*.tar"))) <= 3 + 2 * shard_cache.LOADERS
    assert len(server.asked) > 9


def test_a_cut_connection_is_taken_up_and_the_picture_is_whole(server):
    server.cut = {"train-01.tar": 2}
    images = open_images(f"{server.url}/train-{{00..02}}.tar")
    assert all(same(images, i, i) for i in range(12))
    assert server.asked.count("train-01.tar") == 3


def test_a_shard_that_cannot_be_had_is_named_with_the_byte(server, three):
    server.cut = {"train-01.tar": 10**6}
    with pytest.raises(
        ImagesError, match=r"shard train-01.tar failed at byte [\d,]+: http.*tries brought nothing"
    ) as caught:
        open_images(f"{server.url}/train-{{00..02}}.tar")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImagesError, match=r"shard train-07.tar failed at byte 0: .*404"):
        open_images(f"{server.url}/train-07.tar")


def test_a_broken_shard_at_a_url_is_refused_and_not_kept(server, three, cache):
    good = (three / "train-00.tar").read_bytes()
    (three / "train-00.tar").write_bytes(good[:3000])
    with pytest.raises(ImagesError, match=r"http://.*train-00.tar: .*cut short"):
        open_images(f"{server.url}/train-00.tar")
    (three / "train-00.tar").write_bytes(good)
    assert same(open_images(f"{server.url}/train-00.tar"), 3, 3)


def test_a_shard_that_became_another_is_refused(server, three, cache):
    images = open_images(f"{server.url}/train-{{00..02}}.tar")
    for file in cache.rglob("*.tar"):
        file.unlink()
    shard(three / "train-01.tar", range(30, 35))
    assert same(images, 0, 0)
    with pytest.raises(ImagesError, match=r"shard train-01.tar .*sha256 is"):
        images.read(5)


def test_an_untrusted_certificate_is_refused(three, tmp_path):
    """The certificate is checked by the downloader; here only that a shard's way leads through it."""
    from unittest import mock

    from ssl_kd.runtime.download import DownloadError

    with (
        mock.patch.object(
            shard_cache, "download", side_effect=DownloadError("the server's certificate is not trusted: x")
        ),
        pytest.raises(ImagesError, match="certificate is not trusted"),
    ):
        open_images("https://127.0.0.1/train.tar")


def test_offline_no_shard_is_fetched(monkeypatch):
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    monkeypatch.setattr("ssl_kd.runtime.download._opener", lambda: pytest.fail("went to the network"))
    with pytest.raises(ImagesError, match=r"shard a-0.tar failed .* SSL_KD_OFFLINE is set"):
        open_images("http://127.0.0.1:9/a-{0..1}.tar")


def test_the_gigabytes_must_be_a_number(three, monkeypatch):
    monkeypatch.setenv(shard_cache.LIMIT, "many")
    with pytest.raises(ImagesError, match="expected gigabytes"):
        open_images(three)
