"""The zoo's table holds together, and a name becomes a checked file: from the publisher, a mirror, or by hand."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ssl_kd.checkpoints import zoo
from ssl_kd.checkpoints.zoo_entries import ZOO
from ssl_kd.cli import zoo as command
from ssl_kd.errors import CheckpointError
from ssl_kd.runtime.download import DownloadError

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Cache below tmp_path, no mirror, not offline, no proxy."""
    for name in ("SSL_KD_MIRROR", "SSL_KD_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def publish(home, monkeypatch):
    """Let a teacher's publisher be a file on this disk; returns that file."""

    def publish(name, body=BODY, **changes):
        file = home / "publisher" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(body)
        monkeypatch.setitem(ZOO, name, replace(ZOO[name], **({"url": file.as_uri()} | changes)))
        return file

    return publish


@pytest.fixture
def web(home):
    """A folder served over HTTP by the standard library's own server, which knows no ranges."""
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *anything):
            pass

    (home / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=home / "web"))
    server.daemon_threads = True
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield home / "web", f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("entry", ZOO.values(), ids=list(ZOO))
def test_every_row_is_complete(entry):
    assert re.fullmatch(r"[a-z0-9_]+", entry.name)
    assert entry.method
    assert entry.network
    assert entry.width % 128 == 0
    assert "/" not in entry.file
    assert entry.url or entry.note, "without an address there must be advice"
    assert urlsplit(entry.source).scheme == "https"
    assert entry.url is None or (urlsplit(entry.url).scheme == "https" and " " not in entry.url)
    assert entry.url is None or entry.url.replace("%3D", "=").endswith("/" + entry.file)
    assert entry.licence
    for digest in (entry.sha256, entry.md5):
        assert digest is None or re.fullmatch(r"[0-9a-f]{8,64}", digest)
    for score in (entry.knn, entry.linear):
        assert score is None or 30 < score < 100
    assert entry.knn is None or entry.linear is None or entry.knn < entry.linear


def test_names_addresses_and_aliases_are_told_apart():
    names = [zoo._plain(other) for entry in ZOO.values() for other in (entry.name, *entry.aliases)]
    addresses = [entry.url for entry in ZOO.values() if entry.url]
    assert len(set(names)) == len(names)
    assert len(set(addresses)) == len(addresses)


def test_the_families_that_people_hold_are_all_there():
    wanted = {
        "dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8", "dino_resnet50", "dino_xcit_small_12_p16",
        "moco_v1_r50_200ep", "moco_v2_r50_200ep", "moco_v2_r50_800ep", "mocov3_r50_1000ep", "mocov3_vits16_300ep",
        "swav_r50_800ep",
        "swav_r50w5_400ep", "deepclusterv2_r50_800ep", "simclr_v1_r50_4x", "simclr_v2_r50_1x_sk1", "dinov2_vitg14_reg",
    }  # fmt: skip
    assert wanted <= set(ZOO)


def test_names_widths_and_scores_agree_with_the_reference_checkpoints():
    """A second table of the same publications, written by other hands; files own runs write are not in the zoo."""
    folder = Path(__file__).parents[1] / "golden" / "manifests"
    compared = []
    for manifest in map(json.loads, (p.read_text() for p in folder.glob("*.json"))):
        file, reported = manifest["represents"].split()[0], manifest["reported"]
        for entry in ZOO.values():
            if entry.file != file or file not in zoo.UNIQUE_FILES or entry.linear is None:
                continue
            linear = reported.get("linear_tensorflow", reported.get("linear", entry.linear))
            assert (entry.width, entry.linear) == (manifest["arch"]["dim"], linear), file
            assert entry.knn == reported.get("knn"), file
            assert entry.licence.split()[-1] == manifest["licence"].split()[0].rstrip(","), file
            compared.append(file)
    assert len(compared) > 20


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("dino_vits16", "dino_vits16"),
        ("DINO-ViTS16", "dino_vits16"),
        ("facebookresearch/dino:dino_vitb8", "dino_vitb8"),
        ("facebookresearch/swav:resnet50w4", "swav_r50w4_400ep"),
        ("facebookresearch/dinov2:dinov2_vits14_reg", "dinov2_vits14_reg"),
        ("vit_small_patch16_224.dino", "dino_vits16"),
        ("timm/vit_base_patch14_reg4_dinov2.lvd142m", "dinov2_vitb14_reg"),
        ("facebook/dinov2-small", "dinov2_vits14"),
        ("mocov2_resnet50", "moco_v2_r50_800ep"),
    ],
)
def test_names_of_other_places_are_understood(spelling, name):
    assert zoo.known(spelling)
    assert zoo.find(spelling).name == name


def test_every_timm_alias_is_a_name_that_timm_knows():
    from timm import list_pretrained

    ours = {alias for entry in ZOO.values() for alias in entry.aliases if re.search(r"\.(dino|lvd142m)$", alias)}
    assert len(ours) == 12
    assert ours <= set(list_pretrained())


def test_an_unknown_name_gets_near_ones():
    assert not zoo.known("dino_vits17")
    with pytest.raises(CheckpointError, match="Did you mean dino_vits16"):
        zoo.find("dino_vits17")
    with pytest.raises(CheckpointError, match="calls that file moco_v2_r50_800ep"):
        zoo.find("downloads/moco_v2_800ep_pretrain.pth.tar")


def test_a_fetched_file_is_recorded_and_then_found(publish, home):
    file = publish("dino_vits16")
    path = zoo.fetch("facebookresearch/dino:dino_vits16", quiet=True)
    assert path == home / "cache/weights/dino_vits16/dino_deitsmall16_pretrain.pth"
    assert path.read_bytes() == BODY
    record = json.loads(path.with_name("origin.json").read_text())
    assert (record["sha256"], record["size"], record["licence"]) == (SHA256, len(BODY), "Apache-2.0")
    file.unlink()
    assert zoo.fetch("dino_vits16") == path


def test_the_first_digest_seen_holds_from_then_on(publish):
    file = publish("dino_vits16")
    path = zoo.fetch("dino_vits16", quiet=True)
    path.unlink()
    file.write_bytes(BODY[::-1])
    with pytest.raises(
        DownloadError, match=r"sha256 is .*first seen on 20\d\d-.*origin.json to trust another"
    ) as caught:
        zoo.fetch("dino_vits16", quiet=True)
    assert "\n" not in str(caught.value)
    assert not path.exists()
    path.with_name("origin.json").unlink()
    assert zoo.fetch("dino_vits16", quiet=True).read_bytes() == BODY[::-1]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dinov2_vits14", {"size": None}),
        ("dinov2_vits14", {"sha256": None}),
        ("moco_v2_r50_800ep", {}),
        ("mm_simclr_r50_200ep", {}),
    ],
)
def test_what_differs_from_a_published_digest_or_size_is_refused(publish, name, changes):
    publish(name, **changes)
    with pytest.raises(DownloadError, match=r"(size|sha256|md5) is") as caught:
        zoo.fetch(name, quiet=True)
    assert "first seen" not in str(caught.value)
    assert not zoo.place(zoo.find(name)).exists()


def test_published_digests_may_be_beginnings(publish):
    publish("mm_simclr_r50_200ep", sha256=SHA256[:8])
    publish("moco_v2_r50_800ep", md5=hashlib.md5(BODY).hexdigest()[:8])
    for name in ("mm_simclr_r50_200ep", "moco_v2_r50_800ep"):
        assert zoo.fetch(name, quiet=True).read_bytes() == BODY


def test_a_non_commercial_licence_is_said_when_the_file_comes(publish, capsys):
    publish("swav_r50_800ep")
    publish("dino_vits16")
    zoo.fetch("swav_r50_800ep")
    zoo.fetch("dino_vits16")
    said = capsys.readouterr().err
    assert "swav_r50_800ep: licence CC-BY-NC-4.0" in said
    assert "dino_vits16: licence" not in said


# What may happen to a fetched file and its record, and what is said then; None: fetched again.
DAMAGE = {
    "a flipped bit": (lambda path: path.write_bytes(BODY[:-1] + bytes([BODY[-1] ^ 1])), "its digest is .*remove .*zoo download"),
    "cut": (lambda path: path.write_bytes(BODY[:-1]), "is 6,999 bytes, was 7,000"),
    "emptied": (lambda path: path.write_bytes(b""), "is 0 bytes"),
    "swapped": (lambda path: path.write_bytes(BODY[::-1]), "its digest is"),
    "a folder in its place": (lambda path: (path.unlink(), path.mkdir()), "is 4,096 bytes|cannot be read"),
    "deleted": (Path.unlink, None),
    "record: emptied": (lambda path: path.with_name("origin.json").write_text(""), "origin.json: is damaged"),
    "record: not ours": (lambda path: path.with_name("origin.json").write_text('{"sha256": 1}'), "origin.json: is damaged"),
    "record: no text": (lambda path: path.with_name("origin.json").write_bytes(b"\xff"), "origin.json: is damaged"),
    "record: deleted": (lambda path: path.with_name("origin.json").unlink(), None),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_in_the_cache_is_noticed(damage, publish):
    publish("dino_vits16")
    path = zoo.fetch("dino_vits16", quiet=True)
    act, said = DAMAGE[damage]
    act(path)
    for bring in (zoo.fetch, lambda name: command.main(["download", "--quiet", name])):
        if said is None:
            bring("dino_vits16")
            assert path.read_bytes() == BODY
            continue
        with pytest.raises(CheckpointError, match=said) as caught:
            bring("dino_vits16")
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_no_flipped_bit_of_a_record_makes_another_file_trusted(publish):
    publish("dino_vits16")
    path = zoo.fetch("dino_vits16", quiet=True)
    record = path.with_name("origin.json")
    sound = record.read_bytes()
    path.write_bytes(BODY[::-1])
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        record.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged|digest"):
            zoo.fetch("dino_vits16")


def test_a_record_of_an_older_version_still_counts(publish):
    publish("dino_vits16")
    path = zoo.fetch("dino_vits16", quiet=True)
    record = json.loads(path.with_name("origin.json").read_text())
    del record["check"]
    path.with_name("origin.json").write_text(json.dumps(record))
    assert zoo.fetch("dino_vits16") == path
    path.write_bytes(BODY[::-1])
    with pytest.raises(CheckpointError, match="its digest is"):
        zoo.fetch("dino_vits16")


def test_what_a_record_says_never_reaches_the_terminal_raw(publish, capsys):
    publish("dino_vits16")
    path = zoo.fetch("dino_vits16", quiet=True)
    record = json.loads(path.with_name("origin.json").read_text())
    del record["check"]
    path.with_name("origin.json").write_text(json.dumps(record | {"url": "\x1b[31mred\nnote: all is well"}))
    command.main(["show", "dino_vits16"])
    assert "\x1b" not in (said := capsys.readouterr().out)
    assert not any(line.startswith("note: all") for line in said.splitlines())


def test_a_file_put_there_by_hand_is_taken_and_recorded(publish):
    entry = zoo.find("simclr_v1_r50_1x")
    with pytest.raises(
        CheckpointError, match=r"TensorFlow only.*convert.py ResNet50_1x.*Put the file at .*resnet50-1x.pth"
    ):
        zoo.fetch(entry.name)
    path = zoo.place(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert zoo.fetch(entry.name) == path
    assert "put there by hand" in command.show(entry.name)
    wrong = zoo.place(zoo.find("moco_v2_r50_800ep"))
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(BODY)
    with pytest.raises(CheckpointError, match="not the expected one"):
        zoo.fetch("moco_v2_r50_800ep")


@pytest.mark.parametrize("name", ["solo_simclr_r18_cifar10", "simclr_sthalles_r18_stl10", "simclr_v2_r152_3x_sk1"])
def test_what_cannot_be_downloaded_says_where_it_is_or_that_it_is_gone(name):
    with pytest.raises(CheckpointError, match=r"Gone|Google Drive|TensorFlow") as caught:
        zoo.fetch(name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_what_the_publisher_took_away_is_said(publish):
    publish("dino_vits16").unlink()
    with pytest.raises(CheckpointError, match=r"publisher no longer has it.*Tried: .*A copy goes to"):
        zoo.fetch("dino_vits16", quiet=True)


@pytest.mark.parametrize("yes", ["1", "true", "YES"])
def test_offline_means_no_network_at_all(monkeypatch, yes):
    monkeypatch.setenv("SSL_KD_OFFLINE", yes)
    monkeypatch.setenv("SSL_KD_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setattr("ssl_kd.runtime.download._opener", lambda: pytest.fail("went to the network"))
    with pytest.raises(CheckpointError, match=r"SSL_KD_OFFLINE is set. Put dino_deitsmall16_pretrain.pth at"):
        zoo.fetch("dino_vits16")


@pytest.mark.parametrize("layout", ["dino_vits16/dino_deitsmall16_pretrain.pth", "dino_deitsmall16_pretrain.pth"])
def test_a_mirror_folder_serves_offline_in_either_layout(home, monkeypatch, layout):
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    monkeypatch.setenv("SSL_KD_MIRROR", str(home / "mirror") + "/")
    file = home / "mirror" / layout
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    assert zoo.fetch("dino_vits16", quiet=True).read_bytes() == BODY
    assert file.exists()


def test_a_mirror_does_not_mistake_equal_file_names(home, monkeypatch):
    assert ZOO["simclr_spijkervet_r50"].file == ZOO["simclr_spijkervet_r18"].file
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    monkeypatch.setenv("SSL_KD_MIRROR", str(home / "mirror"))
    (home / "mirror").mkdir()
    (home / "mirror/checkpoint_100.tar").write_bytes(BODY)
    with pytest.raises(CheckpointError, match="not in the cache"):
        zoo.fetch("simclr_spijkervet_r50")


def test_a_mirror_address_is_asked_before_the_publisher(web, publish, monkeypatch):
    folder, address = web
    publish("lightly_simclr_r50_100ep", body=b"the publisher's")
    monkeypatch.setenv("SSL_KD_MIRROR", address)
    path = folder / "lightly_simclr_r50_100ep/epoch=99-step=500400.ckpt"
    path.parent.mkdir()
    path.write_bytes(BODY)
    assert zoo.fetch("lightly_simclr_r50_100ep", quiet=True).read_bytes() == BODY


def test_what_the_mirror_lacks_comes_from_the_publisher(web, publish, monkeypatch):
    monkeypatch.setenv("SSL_KD_MIRROR", web[1])
    publish("dino_vits16")
    assert zoo.fetch("dino_vits16", quiet=True).read_bytes() == BODY


def test_a_damaged_mirror_is_not_passed_over_in_silence(web, publish, monkeypatch):
    monkeypatch.setenv("SSL_KD_MIRROR", web[1])
    publish("mm_simclr_r50_200ep", sha256=SHA256)
    (web[0] / ZOO["mm_simclr_r50_200ep"].file).write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="sha256 is"):
        zoo.fetch("mm_simclr_r50_200ep", quiet=True)


def test_the_cache_follows_the_platform(monkeypatch, tmp_path):
    assert zoo.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SSL_KD_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_folder() == tmp_path / "xdg/ssl_kd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zoo.cache_folder() == tmp_path / ".cache/ssl_kd"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert zoo.cache_folder() == tmp_path / "Library/Caches/ssl_kd"


def test_the_list_has_a_line_for_each_teacher_and_can_be_narrowed(publish, capsys):
    publish("dino_vits16")
    zoo.fetch("dino_vits16", quiet=True)
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ZOO) + 2
    assert next(line for line in lines if line.startswith("dino_vits16 ")).endswith("cached")
    command.main(["list", "swav", "W2"])
    assert "vissl_swav_r50w2_400ep" in (narrow := capsys.readouterr().out)
    assert len(narrow.splitlines()) == 4
    with pytest.raises(CheckpointError, match="has all of: swav, vit"):
        command.main(["list", "swav", "vit"])


def test_show_says_licence_scores_source_and_advice(capsys):
    command.main(["show", "swav_r50w5_400ep"])
    said = capsys.readouterr().out
    for part in (
        "linear 78.5",
        "non-commercial",
        "width 10240",
        "586 M",
        "github.com/facebookresearch/swav",
        "not there",
    ):
        assert part in said


def test_json_is_complete(capsys):
    command.main(["list", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(ZOO)
    command.main(["show", "--json", "facebook/dino-vits8"])
    assert json.loads(capsys.readouterr().out)["knn"] == 78.3


def test_download_prints_the_paths(publish, capsys):
    for name in ("dino_vits16", "dino_vits8"):
        publish(name)
    assert command.main(["download", "--quiet", "dino_vits16", "dino_vits8"]) == 0
    out, err = capsys.readouterr()
    assert [line.rsplit("/", 1)[1] for line in out.split()] == [
        "dino_deitsmall16_pretrain.pth",
        "dino_deitsmall8_pretrain.pth",
    ]
    assert err == ""


def test_the_zoo_answers_without_numpy_or_torch():
    code = "import sys; from ssl_kd.cli import zoo; zoo.list_table(); sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_on_the_zoo_runs(publish, capsys):
    publish("dino_vits16")
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text()
    commands = [
        c.split("#")[0].split() for c in re.search(r"```console\n(.*?)```", page, re.DOTALL).group(1).splitlines()
    ]
    assert {words[2] for words in commands} == {"list", "show", "download"}
    for words in commands:
        assert words[:2] == ["ssl-kd", "zoo"]
        assert command.main(words[2:]) == 0
        assert capsys.readouterr().out
    for name in re.findall(r"`((?:facebook|vit_)[^`]+)`", page):
        assert zoo.known(name)
