"""Which programs made a figure: their versions decide the names of caches and stand beside every cell."""

from __future__ import annotations

from ssl_kd.runtime.versions import installed

READERS = ("ssl-kd", "torch", "torchvision", "timm", "pillow", "numpy")  # what decides a picture's features
JUDGES = (*READERS, "faiss-cpu", "scikit-learn")  # what decides a cell


def programs(names: tuple[str, ...] = JUDGES, engine: str = "") -> str:
    """Return names and versions in one line, "torch 2.6.0, ..."; what is not installed is left out.

    `engine` is the name of an extraction engine; one that is a program of its own (openvino) is named too.
    """
    wanted = (*names, engine) if engine == "openvino" else names
    found = {name: version for name in wanted if (version := installed(name))}
    return ", ".join(f"{name} {version}" for name, version in found.items())
