"""Rebuilds published checkpoints from `golden/manifests`, without their weights: every tensor is filled by a rule.

`golden/expected` holds the features which the labs' own model code computed from files filled so. The rule: a generator
PCG64 seeded with the CRC-32 of the tensor's path draws standard normals, which are then scaled by what the tensor is.
"""

import argparse
import json
import math
import sys
import zipfile
import zlib
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import torch

HERE = Path(__file__).parent / "golden"


def manifests():
    """All manifests by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "manifests").glob("*.json"))}


def expected(name):
    """Reference features {'cls@224x224': array}; empty where only shapes are known."""
    path = HERE / "expected" / f"{name}.npz"
    if not path.exists():
        return {}
    with np.load(path) as archive:
        return dict(archive)


def draw(path):
    return np.random.Generator(np.random.PCG64(zlib.crc32(path.encode())))


def fill(path, shape, dtype="float32"):
    """The values of the tensor at a path, keys from the root joined by '/'."""
    leaf = path.replace("/", ".").rpartition(".")[2]
    if "int" in dtype or dtype == "bool":
        return np.full(shape, leaf == "num_batches_tracked", dtype)
    x = np.asarray(draw(path).standard_normal(shape, dtype=np.float32))
    tenth = np.float32(0.1)
    if leaf == "running_var":
        x = 1 + tenth * np.abs(x)
    elif leaf in ("running_mean", "beta") or leaf.endswith("bias"):
        x = tenth * x
    elif "token" in leaf or leaf.startswith("pos"):
        x = np.float32(0.2) * x
    elif leaf.startswith(("gamma", "lambda")) or leaf == "temperature" or x.ndim == 1:
        x = 1 + tenth * x
    elif x.ndim:
        x = x / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.ascontiguousarray(x, dtype).reshape(shape)


def tensor(path, shape, dtype, wanted):
    """A filled tensor. Big ones outside the wanted branch are one stored number, repeated: same shape, no bytes."""
    if math.prod(shape) > 50_000 and not path.startswith(wanted):
        return torch.full((), 0.01, dtype=getattr(torch, dtype)).expand(shape)
    plain = "float32" if dtype == "bfloat16" else dtype
    return torch.from_numpy(fill(path, shape, plain)).to(getattr(torch, dtype))


def sizes(text):
    return () if text == "-" else tuple(map(int, text.split("x")))


# Buffers that are computed, not learned: all real files hold the same values.
FIXED = {
    "zero": lambda n: np.zeros(n, np.float32),
    "mask_k": lambda n: (np.arange(n) // (n // 3) != 1).astype(np.float32),
    "rope100": lambda n: (100.0 ** (np.arange(n) / n)).astype(np.float32),
}


def state_dict(node, path, wanted):
    out = OrderedDict() if node.get("type", "odict") == "odict" else {}
    rules, same = node.get("fixed", {}), node.get("same", {})
    for line in node["tensors"]:
        key, shape, *dtype = line.split(" ")
        kind = dtype[0] if dtype else "float32"
        rule = rules.get(key.rpartition(".")[2])
        if key in same:
            out[key] = out[same[key]]
        elif rule:
            out[key] = torch.from_numpy(FIXED[rule](sizes(shape)[-1])).to(getattr(torch, kind))
        else:
            out[key] = tensor("/".join([*path, key]), sizes(shape), kind, wanted)
    return out


def optimizer(node, wanted):
    """The state dict of a torch optimizer; its buffers are zeros without bytes."""
    runs = (entry.partition("*") for entry in node["shapes"])
    shapes = [sizes(shape) for shape, _, times in runs for _ in range(int(times or 1))]
    state = {
        i: {
            slot: torch.zeros(()).expand(shape) if kind == "like" else build(kind, [], wanted)
            for slot, kind in node["slots"]
        }
        for i, shape in enumerate(shapes)
        if i not in node.get("without_state", [])
    }
    groups, start = [], 0
    for group in node["groups"]:
        values = {key: build(value, [], wanted) for key, value in group.items() if key != "n"}
        groups.append({**values, "params": list(range(start, start + group["n"]))})
        start += group["n"]
    return {"state": state, "param_groups": groups}


class Function:
    """Stands for a function of a training script, of which a pickle holds the two names only."""

    def __init__(self, module, name):
        self.__module__, self.name = module, name

    def __reduce__(self):
        return self.name


FUNCTIONS = {}  # one object a name, as in the script


def build(node, path, wanted):
    """The object behind a node of a manifest's tree."""
    if isinstance(node, list):
        return [build(item, path, wanted) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node["$"]
    if kind == "state":
        return state_dict(node, path, wanted)
    if kind == "tensor":
        return tensor("/".join(path), tuple(node["shape"]), node.get("dtype", "float32"), wanted)
    if kind == "optim":
        return optimizer(node, wanted)
    if kind == "tuple":
        return tuple(build(item, path, wanted) for item in node["items"])
    if kind == "npfloat":
        return np.float64(node["value"])
    if kind == "global":
        return FUNCTIONS.setdefault((node["module"], node["name"]), Function(node["module"], node["name"]))
    items = [(key, build(value, [*path, str(key)], wanted)) for key, value in node["items"]]
    return {"dict": dict, "odict": OrderedDict, "namespace": lambda pairs: argparse.Namespace(**dict(pairs))}[kind](
        items
    )


def checkpoint(manifest):
    """The object that the real file holds."""
    chosen = manifest.get("select") or {}
    wanted = "/".join([*chosen.get("path", []), chosen.get("prefix", "")])
    return build(manifest["tree"], [], wanted)


def write(manifest, folder, saved=None):
    """The file as its lab's program left it: container, device of the storages, numpy's old name."""
    saved = checkpoint(manifest) if saved is None else saved
    kind = manifest["serialization"]
    if kind == "folder":
        return write_shards(manifest, folder, saved)
    path = folder / ("model.safetensors" if kind == "safetensors" else "checkpoint.pth")
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(dict(saved), path, metadata={"format": "pt"})
        return path
    with ExitStack() as stack:
        place = manifest.get("location", "cpu")
        stack.enter_context(mock.patch("torch.serialization.location_tag", lambda storage: place))  # noqa: PT008
        for (module, name), function in FUNCTIONS.items():  # the pickler looks a name up before it writes it
            stack.enter_context(mock.patch.object(sys.modules[module], name, function, create=True))
        torch.save(saved, path, _use_new_zipfile_serialization=kind == "zip")
    if any("numpy" in name for name in manifest["globals"]):
        rename_numpy(path, kind)
    return path


def write_shards(manifest, folder, saved):
    """The folder that save_pretrained leaves: shards of so many tensors each, and their index."""
    from safetensors.torch import save_file

    names, where = list(saved), {}
    for file, count in manifest["shards"]:
        part, names = names[:count], names[count:]
        save_file({name: saved[name] for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def write_beside(manifest, folder):
    """The small files, such as config.json, that lie beside a case's weights in its repository."""
    for name, content in manifest.get("files", {}).items():
        (folder / name).write_text(json.dumps(content))


def rename_numpy(path, kind):
    """Name numpy's scalars as numpy before 2 did."""
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    if kind == "legacy":
        path.write_bytes(path.read_bytes().replace(new, old))
        return
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data.replace(new, old) if name.endswith("data.pkl") else data)


def batch(manifest, size):
    """The input that the backbone received, already normalised unless the manifest says `unit`: (N, 3, h, w)."""
    shape = next(tuple(s) for s in manifest["inputs"] if tuple(s[2:]) == size)
    n, c, h, w = shape
    g = draw(f"input/{manifest['name']}/{'x'.join(map(str, shape))}")
    tone, low, noise = (g.standard_normal(s, dtype=np.float32) for s in ((n, c, 1, 1), (n, c, 8, 8), shape))
    x = tone + low[:, :, np.arange(h) * 8 // h][..., np.arange(w) * 8 // w] + np.float32(0.5) * noise
    if manifest["input_range"] == "unit":
        x = np.clip(np.float32(0.5) + np.float32(0.5) * x, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def image():
    """The uint8 RGB picture, 300 high and 400 wide, that the preprocessing references were made from."""
    g = draw("image/300x400x3")
    low, noise = g.standard_normal((12, 16, 3), dtype=np.float32), g.standard_normal((300, 400, 3), dtype=np.float32)
    x = 128 + 48 * low[np.arange(300) * 12 // 300][:, np.arange(400) * 16 // 400] + 16 * noise
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def limit(reference):
    """How far a feature may be off: float32 on another machine stays ten times below, a wrong epsilon is above."""
    return 2e-5 + 1e-5 * float(np.abs(reference).max())
