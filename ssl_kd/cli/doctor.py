"""What this machine and this install can do: `ssl-kd doctor`, the first thing to send along with a question.

Versions, devices, number formats, the cache folder and its size, and which extras lack which package.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import requires

from ssl_kd.runtime.cache import cache_folder
from ssl_kd.runtime.command_line import OneLineParser
from ssl_kd.runtime.timing import processor
from ssl_kd.runtime.versions import installed

CPU_FLAGS = {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx512_bf16": "bf16", "amx_tile": "AMX", "avx2": "AVX2"}


def main(argv: Sequence[str]) -> int:
    """Show versions, devices, number formats, cache and what is missing for which extra."""
    parser = OneLineParser("ssl-kd doctor", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    found = examined()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for title, rows in found.items():
        print(title)
        for name, value in rows.items():
            print(f"  {name:<20}{value}")
    print("Next: ssl-kd demo, or ssl-kd --help")
    return 0


def examined() -> dict[str, dict[str, str]]:
    """Every finding, by section and name. Nothing is written, and nothing is asked of the network."""
    return {
        "versions": dict(_versions()),
        "machine": _machine() | _torch(),
        "cache": _cache(),
        "extras": dict(_extras()),
    }


def _requirements() -> list[tuple[str, str]]:
    """(package, extra) of each requirement in our metadata; extra is "" for what everybody gets."""
    rows = []
    for line in requires("ssl-kd") or []:
        what, _, marker = line.partition(";")
        name = what.strip()
        for end, letter in enumerate(name):
            if not (letter.isalnum() or letter in "-_."):
                name = name[:end]
                break
        extra = marker.split("extra ==")[1].strip().strip("\"'()").split('"')[0] if "extra ==" in marker else ""
        rows.append((name, extra))
    return rows


def _versions() -> Iterator[tuple[str, str]]:
    yield "ssl-kd", installed("ssl-kd") or "not installed"
    yield "python", platform.python_version()
    for package, extra in _requirements():
        if not extra:
            yield package, installed(package) or "MISSING: install ssl-kd again"


def _machine() -> dict[str, str]:
    _, flags = processor()
    known = sorted({name for flag, name in CPU_FLAGS.items() if flag in flags})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "cores": str(cores),
        "cpu features": ", ".join(known)
        or ("unknown here" if sys.platform != "linux" else "none of AVX2, VNNI, bf16, AMX"),
    }


def _torch() -> dict[str, str]:
    import torch

    from ssl_kd.runtime.devices import bf16_pays, device_kind

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    kind = device_kind("auto")
    return {
        "torch threads": str(torch.get_num_threads()),
        "gpu": gpus or "none that torch can use",
        "precision: auto": f"{'bf16-mixed' if bf16_pays(kind) else '32-true'} on {kind} (measured)",
    }


def _cache() -> dict[str, str]:
    place = cache_folder()
    count = size = 0
    for here, _, files in os.walk(place):
        for name in files:
            try:
                size += os.lstat(os.path.join(here, name)).st_size
                count += 1
            except OSError:  # gone while we looked
                continue
    return {
        "folder": str(place),
        "holds": f"{count:,} files, {size / 1e6:,.1f} MB" if count else "nothing yet",
        "moved by": "SSL_KD_CACHE=FOLDER; uninstalling ssl-kd leaves it: remove it yourself",
    }


def _extras() -> Iterator[tuple[str, str]]:
    wanted: dict[str, list[str]] = {}
    for package, extra in _requirements():
        if extra and extra != "dev" and package != "ssl-kd":
            wanted.setdefault(extra, []).append(package)
    for extra, packages in sorted(wanted.items()):
        missing = [package for package in packages if not installed(package)]
        have = ", ".join(f"{package} {installed(package)}" for package in packages)
        yield extra, have if not missing else f"missing {', '.join(missing)}: pip install 'ssl-kd[{extra}]'"
