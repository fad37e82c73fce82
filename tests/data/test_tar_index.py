"""The header reader finds what tarfile finds, and says where an archive is broken instead of losing members."""

import io
import os
import tarfile

import pytest

from ssl_kd.data.sources.tar_index import TarError, is_header, members

LONG = "n01440764/" + "x" * 180 + ".jpg"
NAMES = ["a.jpg", "b.cls", "ü/ö.png", LONG, "d" * 120 + "/" + "e" * 60 + ".jpg"]


def pack(path, names=NAMES, form=tarfile.PAX_FORMAT, extra=()):
    with tarfile.open(path, "w", format=form) as out:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = i * 300
            out.addfile(info, io.BytesIO(bytes([i]) * info.size))
        for info in extra:
            out.addfile(info)
    return path


def read(path):
    with open(path, "rb") as file:
        return list(members(file.fileno(), os.path.getsize(path)))


def info(name, kind, **more):
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in more.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_gives_the_members_that_tarfile_finds(tmp_path, form):
    names = [n for n in NAMES if form != tarfile.USTAR_FORMAT or n != LONG]
    found = read(pack(tmp_path / "x.tar", names, form))
    with tarfile.open(tmp_path / "x.tar") as oracle:
        assert [(m.name.decode(), m.data, m.size) for m in found] == [
            (m.name, m.offset_data, m.size) for m in oracle.getmembers()
        ]
    assert {m.kind for m in found} == {"file"}


def test_members_that_are_no_files_are_told_apart(tmp_path):
    extra = [
        info("l.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"),
        info("h.jpg", tarfile.LNKTYPE, linkname="a.jpg"),
        info("d.jpg", tarfile.CHRTYPE),
        info("f", tarfile.DIRTYPE),
        info("p.jpg", tarfile.FIFOTYPE),
        info("s.jpg", tarfile.REGTYPE, pax_headers={"GNU.sparse.realsize": "5"}),
    ]
    kinds = [m.kind for m in read(pack(tmp_path / "x.tar", ["a.jpg"], extra=extra))]
    assert kinds == ["file", "link", "link", "device", "folder", "pipe", "sparse"]


def test_an_old_sparse_member_is_stepped_over(tmp_path):
    header = bytearray(info("s.jpg", b"S", size=512).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    more = bytearray(512)
    more[504] = 1
    rest = pack(tmp_path / "x.tar", ["a.jpg"]).read_bytes()
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(more) + bytes(512) + b"x" * 512 + rest)
    assert [(m.name, m.kind) for m in read(tmp_path / "x.tar")] == [(b"s.jpg", "sparse"), (b"a.jpg", "file")]


def test_sizes_in_base_256_are_read(tmp_path):
    path = pack(tmp_path / "x.tar", ["a.jpg", "b.jpg"])
    data = bytearray(path.read_bytes())
    at = data.find(b"b.jpg")
    data[at + 124 : at + 136] = b"\x80" + (300).to_bytes(11, "big")
    resum(data, at)
    path.write_bytes(data)
    assert read(path)[1].size == 300


def resum(data, at):
    data[at + 148 : at + 156] = b"        "
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def changed(path, at, new, sums=True):
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    if sums:
        resum(data, at // 512 * 512)
    path.write_bytes(data)


BREAKS = {
    "claims 8589934591 bytes.*cut short": lambda p: changed(p, 512 + 124, b"77777777777\0"),
    "claims 6189\\d+ bytes.*cut short": lambda p: changed(p, 512 + 124, b"\x80" + (6189 * 10**20).to_bytes(11, "big")),
    "states a size that is none": lambda p: changed(p, 512 + 124, b"-0000000001\0"),
    "no member header at byte 512": lambda p: changed(p, 512, b"!", sums=False),
    "ends at byte 1600 without an end mark": lambda p: os.truncate(p, 1600),
    "claims 600 bytes.*has 2600": lambda p: os.truncate(p, 2600),
    "without an end mark": lambda p: os.truncate(p, 3072),
    "two archives in one file": lambda p: p.write_bytes(p.read_bytes() * 2),
    "not a tar archive": lambda p: p.write_bytes(b"text" * 1000),
    "packed by gzip": lambda p: p.write_bytes(b"\x1f\x8b" + bytes(1000)),
    "ends at byte 0": lambda p: p.write_bytes(b""),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_a_broken_archive_is_refused_with_the_byte(tmp_path, reason):
    path = pack(tmp_path / "x.tar", ["a.jpg", "b.jpg", "c.jpg"])
    BREAKS[reason](path)
    with pytest.raises(TarError, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (b"x", b"30 path=short\n", "is damaged"),
        (b"x", b"-3 path=short\n", "is damaged"),
        (b"x", b"path", "is damaged"),
        (b"x", b"13 size=1e99\n", "a size that is none"),
        (b"x", b"11 size=-9\n", "a size that is none"),
        (b"g", b"10 path=a\n", "renames or resizes all members"),
        (b"L", b"a" * (1 << 21), "claims 2097152 bytes, more than"),
    ],
)
def test_a_tricky_extended_header_is_refused(tmp_path, kind, body, reason):
    made = info("pax", kind, size=len(body)).tobuf(tarfile.USTAR_FORMAT)
    rest = pack(tmp_path / "x.tar", ["a.jpg"]).read_bytes()
    (tmp_path / "x.tar").write_bytes(made + body + bytes(-len(body) % 512) + rest)
    with pytest.raises(TarError, match=reason):
        read(tmp_path / "x.tar")


def test_every_cut_and_every_flipped_header_byte_is_noticed_or_harmless(tmp_path):
    whole = pack(tmp_path / "x.tar", ["a.jpg", LONG, "c.jpg"], tarfile.GNU_FORMAT).read_bytes()
    good = read(tmp_path / "x.tar")
    for cut in range(0, good[-1].data + good[-1].size + 512, 97):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        with pytest.raises(TarError):
            read(tmp_path / "x.tar")
    header = good[1].data - 512
    for at in range(512):
        data = bytearray(whole)
        data[header + at] ^= 0x15
        (tmp_path / "x.tar").write_bytes(data)
        if not 154 <= at < 156:  # what follows the digits of the check sum
            with pytest.raises(TarError):
                read(tmp_path / "x.tar")


def test_the_check_sum_is_that_of_the_standard():
    for seed in range(50):
        made = info(f"{seed}" * seed, tarfile.REGTYPE, size=seed**5, mtime=seed).tobuf(tarfile.GNU_FORMAT)[-512:]
        assert is_header(made)
        assert not is_header(bytes([made[0] ^ 1]) + made[1:])
    assert not is_header(bytes(512))
    assert not is_header(b"")
