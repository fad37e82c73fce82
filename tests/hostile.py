"""Weight files that mean harm, or that damage made strange, written byte by byte.

Each builder takes a folder and returns a path. A payload that runs would create the file `ran` in that folder.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import torch

MARK, STOP = b"(", b"."
TINY = {"conv1.weight": torch.ones(2, 3)}


class Runs:
    """Pickles as a call of the named function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def touch(folder):
    import os

    return Runs(os.system, f"touch '{folder}/ran'")


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def glob(path):
    module, _, name = path.rpartition(".")
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def archive(folder, data, records=(), compress=zipfile.ZIP_STORED, root="archive", extra=()):
    """A torch zip around a hand-made data.pkl."""
    path = folder / "hostile.pth"
    with zipfile.ZipFile(path, "w", compress) as out:
        out.writestr(f"{root}/data.pkl", data)
        for key, value in dict(records).items():
            out.writestr(f"{root}/data/{key}", value)
        for name, value in extra:
            out.writestr(name, value)
    return path


def program(folder, body, protocol=2, **how):
    return archive(folder, b"\x80" + bytes([protocol]) + body + STOP, **how)


def saved(folder, value, **how):
    path = folder / "hostile.pth"
    torch.save(value, path, **how)
    return path


def storage(kind="torch.FloatStorage", key="0", count=4):
    """Opcodes that leave a storage on the stack."""
    number = b"\x8a" + bytes([9]) + count.to_bytes(9, "little", signed=True)
    return MARK + text("storage") + glob(kind) + text(key) + text("cpu") + number + b"tQ"


def integers(*values):
    return MARK + b"".join(b"\x8a\x09" + v.to_bytes(9, "little", signed=True) for v in values) + b"t"


def one_tensor(size, stride, offset=0, held=16, **how):
    """A state dict of one tensor over `held` bytes, with whatever size, stride and offset are claimed."""
    args = MARK + storage(**how) + b"\x8a\x09" + offset.to_bytes(9, "little", signed=True)
    args += integers(*size) + integers(*stride) + b"\x89" + glob("collections.OrderedDict") + b")Rt"
    body = b"}" + text("conv1.weight") + glob("torch._utils._rebuild_tensor_v2") + args + b"Rs"
    return body, {"0": b"\0" * held}


def tensor_file(folder, *args, **how):
    body, records = one_tensor(*args, **how)
    return program(folder, body, records=records)


def legacy(folder, value, trailer=b""):
    """torch's container before 1.6, opened with its magic number."""
    path = folder / "hostile.pth"
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + value + trailer)
    return path


def legacy_terabytes(folder):
    body, _ = one_tensor((2, 2), (2, 1), count=2**40)
    return legacy(folder, b"\x80\x02" + body + STOP + pickle.dumps(["0"], 2), struct.pack("<q", 2**40) + b"\0" * 64)


def nested(opening, closing, depth):
    return lambda folder: program(folder, opening * depth + b"N" + closing * depth)


def laughs(as_key):
    """Sixty doublings: 2**60 leaves, or a hash that takes as long."""
    body = b"N" + b"".join(b"q\x01h\x01\x86" for _ in range(60))
    return lambda folder: program(folder, b"}" + body + b"Ns" if as_key else body)


def amplifier(folder):
    """One list of 100 000 items, made a set 10 000 times."""
    long = b"]q\x01(" + b"K\x01" * 100_000 + b"e0"
    call = glob("collections.OrderedDict") + b"h\x01\x85R0"
    return program(folder, long + call * 10_000 + b"N")


def flagged(folder, flag):
    """The archive's entries with a general purpose flag set."""
    path = saved(folder, TINY)
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02", 0, data.find(b"PK\x01\x02") + 1)
    data[place + 8] |= flag
    path.write_bytes(data)
    return path


def patched(folder, place, value):
    """The archive's end record with other bytes at a place."""
    path = saved(folder, TINY)
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\x05\x06")
    data[end + place : end + place + len(value)] = value
    path.write_bytes(data)
    return path


def deflated(folder):
    path = saved(folder, {"w": torch.zeros(1_000_000)})
    with zipfile.ZipFile(path) as given:
        members = [(info.filename, given.read(info)) for info in given.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members:
            out.writestr(name, data)
    return path


def doubled(folder):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return archive(folder, pickle.dumps({}, 2), extra=[("archive/data.pkl", pickle.dumps({}, 2))])


def safetensors(folder, header, length=None, body=b"\0" * 16):
    path = folder / "hostile.safetensors"
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + body)
    return path


def student(folder, **changes):
    """A student file with a changed record and a matching check sum, as a forger would write it."""
    import hashlib

    from safetensors.torch import save_file

    record = {
        "arch": "resnet18",
        "arch_args": {},
        "feature": "pool",
        "dim": 512,
        "preprocessing": {},
        "origin": "nowhere",
        "digest": "0" * 64,
        "card": {},
    }
    given = json.dumps({**record, **changes})
    path = folder / "hostile.safetensors"
    total = hashlib.sha256(given.encode()).hexdigest()
    save_file({"w": torch.ones(2)}, path, metadata={"ssl_kd": given, "ssl_kd_sha256": total})
    return path


def evil_tar(folder):
    path = folder / "hostile.tar"
    with tarfile.open(path, "w") as out:
        info = tarfile.TarInfo("../../ran")
        info.size = 3
        out.addfile(info, io.BytesIO(b"bad"))
    return path


def raw(data, name="hostile.pth"):
    def build(folder):
        path = folder / name
        path.write_bytes(data)
        return path

    return build


def module(folder):
    return saved(folder, torch.nn.Linear(2, 2))


def poisoned_namespace(folder):
    import argparse

    return saved(folder, {"args": argparse.Namespace(lr=touch(folder)), "state_dict": TINY})


def late_payload(folder):
    """Good tensors first, the call at the very end."""
    return saved(folder, OrderedDict([*((f"w{i}", torch.ones(3)) for i in range(50)), ("x", touch(folder))]))


def number(value):
    """A whole number of up to 255 bytes."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def keys(values):
    """A dict with these opcodes as keys."""
    return lambda folder: program(folder, b"}(" + b"".join(value + b"N" for value in values) + b"u")


def handed(opcodes, call, times):
    """One value handed to a call again and again."""
    return lambda folder: program(folder, opcodes + b"q\x010" + call * times + b"N")


def overlapping(folder):
    """Ten thousand members that all are the same hundred thousand bytes."""
    path = archive(folder, b"", records={"0": b"\1" * 100_000})
    body = MARK + b"".join(storage("torch.ByteStorage", str(k), 100_000) for k in range(10_000)) + b"l"
    with zipfile.ZipFile(path, "a") as out:
        whole = out.getinfo("archive/data/0")
        out.NameToInfo.clear()
        out.filelist[:] = [whole]
        out.writestr("archive/data.pkl", b"\x80\x02" + body + STOP)
        for k in range(1, 10_000):
            twin = zipfile.ZipInfo(f"archive/data/{k}")
            twin.header_offset, twin.CRC = whole.header_offset, whole.CRC
            twin.file_size = twin.compress_size = 100_000
            out.filelist.append(twin)
    return path


def one_storage_for_all(folder):
    """A network of which each of ten thousand tensors is one and the same megabyte."""
    base = torch.ones(250_000)
    return saved(folder, {**{f"layer1.{k}.weight": base.view(500, 500) for k in range(10_000)}, "conv1.weight": base})


def header(text, folder, body=b"\0" * 16):
    return safetensors(folder, text.encode("utf-8", "surrogatepass"), body=body)


def by_opcode(opcodes):
    return lambda folder: program(folder, opcodes(f"touch '{folder}/ran'"))


# What is tried, by name. Each must be refused in one line, run nothing, and take no time.
FILES = {
    "os.system by reduce": lambda folder: saved(folder, {"state_dict": touch(folder)}),
    "os.system by reduce, old container": lambda folder: saved(
        folder, {"state_dict": touch(folder)}, _use_new_zipfile_serialization=False
    ),
    "os.system behind good tensors": late_payload,
    "os.system in an argparse.Namespace": poisoned_namespace,
    "os.system in an optimizer": lambda folder: saved(folder, {"optimizer": [{"state": touch(folder)}]}),
    "os.system in an OrderedDict's attributes": by_opcode(
        lambda shell: glob("collections.OrderedDict") + b")R" + glob("os.system") + text(shell) + b"\x85Rb"
    ),
    "posix.system by stacked name": by_opcode(
        lambda shell: b"\x8c\x05posix\x8c\x06system\x93" + text(shell) + b"\x85R"
    ),
    "os.system by INST": by_opcode(lambda shell: MARK + text(shell) + b"ios\nsystem\n"),
    "os.system by OBJ": by_opcode(lambda shell: MARK + glob("os.system") + text(shell) + b"o"),
    "os.system by NEWOBJ": by_opcode(lambda shell: glob("os.system") + text(shell) + b"\x85\x81"),
    "os.system by NEWOBJ_EX": by_opcode(lambda shell: glob("os.system") + text(shell) + b"\x85}\x92"),
    "builtins.eval": lambda folder: saved(folder, Runs(eval, f"open('{folder}/ran', 'w')")),
    "builtins.exec": lambda folder: saved(folder, Runs(exec, f"open('{folder}/ran', 'w')")),
    "builtins.open": lambda folder: saved(folder, Runs(open, f"{folder}/ran", "w")),
    "builtins.getattr": lambda folder: program(folder, glob("builtins.getattr") + b"N\x8c\x01x\x86R"),
    "importlib.import_module": lambda folder: program(folder, glob("importlib.import_module") + text("os") + b"\x85R"),
    "subprocess.Popen": lambda folder: program(folder, glob("subprocess.Popen") + text("true") + b"\x85R"),
    "torch.load": lambda folder: program(folder, glob("torch.load") + text("/etc/hosts") + b"\x85R"),
    "torch.hub.load": lambda folder: program(folder, glob("torch.hub.load") + text("a/b") + text("c") + b"\x86R"),
    "numpy.load": lambda folder: program(folder, glob("numpy.load") + text("/etc/hosts") + b"\x85R"),
    "a name with dots into an allowed class": lambda folder: program(
        folder, text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93"
    ),
    "a name with dots into a settings package": lambda folder: program(
        folder, text("omegaconf.base") + text("os.system") + b"\x93"
    ),
    "a name that is not text": lambda folder: program(folder, b"K\x01K\x02\x93"),
    "a name with control characters": lambda folder: program(
        folder, text("os\x1b[31m\n") + text("system\r\n") + b"\x93"
    ),
    "an extension code": lambda folder: program(folder, b"\x82\x01"),
    "an out-of-band buffer": lambda folder: program(folder, b"\x97", protocol=5),
    "a whole nn.Module": module,
    "a module with its source, as torch 0.4 saved them": lambda folder: program(
        folder, MARK + text("module") + glob("torch.FloatStorage") + text("file.py") + text("import os") + b"tQ"
    ),
    "a call of a string": lambda folder: program(folder, text("os.system") + b")R"),
    "a million nested tuples": nested(b"", b"\x85", 1_000_000),
    "a hundred thousand nested lists": nested(b"]", b"a", 100_000),
    "a list in itself": lambda folder: program(folder, b"]q\x01h\x01a"),
    "two to the sixty leaves": laughs(as_key=False),
    "a dict key of two to the sixty leaves": laughs(as_key=True),
    "a list copied ten thousand times": amplifier,
    "five million opcodes": lambda folder: program(folder, b"N0" * 2_500_000 + b"N"),
    "a memo index of two billion": lambda folder: program(folder, b"Nr\xff\xff\xff\x7f"),
    "a string of 2**60 bytes": lambda folder: program(folder, b"\x8d" + struct.pack("<Q", 2**60) + b"abc"),
    "an integer of a billion bytes": lambda folder: program(folder, b"\x8b" + struct.pack("<i", 10**9)),
    "dict keys of one hash": keys(number((2**61 - 1) * k) for k in range(1, 60_000)),
    "tuples of one hash as dict keys": keys(b"K\x01" + number((2**61 - 1) * k) + b"\x86" for k in range(1, 60_000)),
    "a dict key of 240,000 digits": lambda folder: program(
        folder, b"}\x8b" + struct.pack("<i", 100_000) + b"\1" * 100_000 + b"Ns"
    ),
    "a dict key of a long tuple, again and again": handed(b"(" + b"K\x01" * 100_000 + b"t", b"}h\x01Ns0", 100_000),
    "a call of a hundred thousand arguments, again and again": handed(
        b"(" + b"K\x01" * 100_000 + b"t", glob("torch.device") + b"h\x01R0", 50_000
    ),
    "a long name, again and again": handed(text("x" * 1_000_000), b"h\x01h\x01\x93", 1_000_000),
    "a name of two to the sixty leaves": lambda folder: program(
        folder, b"N" + b"".join(b"q\x01h\x01\x86" for _ in range(60)) + text("x") + b"\x93"
    ),
    "a storage's name of a megabyte, again and again": handed(
        text("x" * 1_000_000),
        MARK + text("storage") + glob("torch.FloatStorage") + b"h\x01" + text("cpu") + b"K\x01tQ0",
        9_999,
    ),
    "a memo index of 4,000 digits": lambda folder: program(folder, b"Np" + b"9" * 4000 + b"\n"),
    "a memo index below zero": lambda folder: program(folder, b"Np-1\n"),
    "a tensor for a tensor's size": lambda folder: program(
        folder, glob("torch._utils._rebuild_tensor") + b"(" + storage() + b"K\x00NNtR", records={"0": b"\0" * 16}
    ),
    "an ordered dict of a number": lambda folder: program(folder, glob("collections.OrderedDict") + b"K\x01\x85R"),
    "text that is no text": lambda folder: program(folder, b"X\x04\x00\x00\x00\xff\xff\xff\xff"),
    "a number that is no number": lambda folder: program(folder, b"I1_x\n"),
    "a fraction beyond all": lambda folder: program(folder, b"Fabc\n"),
    "an unhashable dict key": lambda folder: program(folder, b"}]Ns"),
    "a stack that runs empty": lambda folder: program(folder, b"\x85\x86R"),
    "a storage of terabytes": lambda folder: tensor_file(folder, (2, 2), (2, 1), count=2**42),
    "a tensor of terabytes": lambda folder: tensor_file(folder, (2**42, 2), (2, 1)),
    "a tensor of terabytes by stride 0": lambda folder: saved(
        folder, {k: torch.ones(()).expand(2**20, 2**20) for k in ("conv1.weight", "layer1.0.conv1.weight")}
    ),
    "a tensor of 2**64 elements": lambda folder: tensor_file(folder, (2**33, 2**33), (0, 0)),
    "a tensor beyond its storage": lambda folder: tensor_file(folder, (2, 3), (3, 1)),
    "a tensor before its storage": lambda folder: tensor_file(folder, (2, 2), (2, 1), offset=-1),
    "a tensor of negative size": lambda folder: tensor_file(folder, (-2, 2), (2, 1)),
    "a tensor of negative stride": lambda folder: tensor_file(folder, (2, 2), (-2, 1)),
    "a storage of an unknown type": lambda folder: tensor_file(folder, (2, 2), (2, 1), kind="torch.device"),
    "a storage outside the archive": lambda folder: tensor_file(folder, (2, 2), (2, 1), key="../../../etc/hosts"),
    "a storage of terabytes, old container": legacy_terabytes,
    "ten thousand storages on the same bytes": overlapping,
    "ten thousand tensors on the same bytes": one_storage_for_all,
    "a zip's list of members beyond the file": lambda folder: patched(folder, 12, struct.pack("<I", 2**32 - 2)),
    "a zip's list of members at the end of numbers": lambda folder: patched(folder, 16, struct.pack("<I", 2**32 - 2)),
    "a zip bomb": lambda folder: archive(
        folder, b"\x80\x02" + text("x" * 50_000_000) + STOP, compress=zipfile.ZIP_DEFLATED
    ),
    "compressed records": deflated,
    "an encrypted archive": lambda folder: flagged(folder, 1),
    "a path that leads outside": lambda folder: archive(folder, pickle.dumps({}, 2), extra=[("../../ran", b"bad")]),
    "an absolute path": lambda folder: archive(folder, pickle.dumps({}, 2), extra=[("/tmp/ran", b"bad")]),
    "one member twice": doubled,
    "two pickles": lambda folder: archive(folder, pickle.dumps({}, 2), extra=[("b/data.pkl", pickle.dumps({}, 2))]),
    "a TorchScript archive": lambda folder: archive(
        folder, pickle.dumps({}, 2), extra=[("archive/constants.pkl", b""), ("archive/code/a.py", b"import os")]
    ),
    "a big-endian file": lambda folder: archive(folder, pickle.dumps({}, 2), extra=[("archive/byteorder", b"big")]),
    "a zip of something else": lambda folder: archive(folder, b"", root="a").rename(folder / "x.zip"),
    "a tar that leads outside": evil_tar,
    "a plain pickle": raw(pickle.dumps({"a": 1})),
    "a pickle that runs, without torch": lambda folder: raw(pickle.dumps(touch(folder)))(folder),
    "the first bytes of a zip": raw(b"PK\x03\x04" + b"\0" * 100),
    "the first byte of a pickle": raw(b"\x80"),
    "an old container cut after its magic": lambda folder: legacy(folder, b""),
    "a safetensors header of 2**60 bytes": lambda folder: safetensors(folder, {}, length=2**60),
    "a safetensors tensor beyond the file": lambda folder: safetensors(
        folder, {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "safetensors tensors that overlap": lambda folder: safetensors(
        folder, {n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}
    ),
    "a safetensors header nested deep": lambda folder: safetensors(folder, b'{"a":' * 100_000),
    "safetensors tensors with a gap": lambda folder: safetensors(
        folder, {n: {"dtype": "F32", "shape": [1], "data_offsets": [8 * k, 8 * k + 4]} for k, n in enumerate("ab")}
    ),
    "a safetensors name twice": lambda folder: header(
        '{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "w": {"dtype": "I8", "shape": [16], "data_offsets": [0, 16]}}',
        folder,
    ),
    "a safetensors size of 5,000 digits": lambda folder: header(
        '{"w": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 16]}}', folder
    ),
    "a safetensors size that is true": lambda folder: header(
        '{"w": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}', folder, b"\0"
    ),
    "a safetensors type of tomorrow": lambda folder: safetensors(
        folder, {"w": {"dtype": "F3\x1b[31m", "shape": [4], "data_offsets": [0, 16]}}
    ),
    "a safetensors header that is a list": lambda folder: header("[{}]", folder, b""),
    "a safetensors note that is no text": lambda folder: header('{"__metadata__": {"ssl_kd": [1]}}', folder, b""),
    "a safetensors name of half a letter": lambda folder: header(
        '{"\\ud800": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', folder
    ),
    "a safetensors header that is no text": lambda folder: safetensors(folder, b'{"\xff\xfe": 1}', body=b""),
    "a student whose card is a list": lambda folder: student(folder, card=[1]),
    "a student whose card is a word": lambda folder: student(folder, card="abc"),
    "a student of infinite width": lambda folder: student(folder, dim=float("inf")),
    "a student with a mean that is no number": lambda folder: student(
        folder, preprocessing={"mean": [float("nan")] * 3}
    ),
    "a student with a mean beyond all numbers": lambda folder: student(folder, preprocessing={"mean": [10**400, 0, 0]}),
    "a student of half a letter": lambda folder: student(folder, arch="\ud800"),
    "a student of a billion blocks": lambda folder: student(folder, arch_args={"depth": 10**9}),
    "a student of a trillion channels": lambda folder: student(folder, arch_args={"embed_dim": 10**12}),
    "a student from somebody's hub": lambda folder: student(folder, arch="hf-hub:somebody/model"),
    "a student with a strange mean": lambda folder: student(folder, preprocessing={"mean": ["a", "b", "c"]}),
    "a student whose record is a list": lambda folder: student(folder, arch_args=[1, 2]),
    "a TensorFlow checkpoint": raw(b"\0\1\2" * 50, "model.ckpt-225206.index"),
    "an empty file": raw(b""),
    "text": raw(b"hello\n"),
    "a PNG": raw(b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "x.png"),
    "a web page": raw(b"<!DOCTYPE html><html>"),
    "a Git LFS pointer": raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
}
