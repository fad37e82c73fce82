"""The example configs that come with the package: list them, print one, or copy one to change it.

ssl-kd configs list
ssl-kd configs show distill/four_teachers
ssl-kd configs copy eval/four_sets my_eval.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import ssl_kd
from ssl_kd.errors import UserError, nearest
from ssl_kd.runtime.command_line import OneLineParser


def folder() -> Path:
    """Where the configs lie: inside an installed package, or beside `ssl_kd/` in a checkout."""
    home = Path(ssl_kd.__file__).parent
    for place in (home / "configs", home.parent / "configs"):
        if place.is_dir():
            return place
    raise UserError(f"configs: expected a folder configs/ in {home}; this install has none. Install ssl-kd again")


def names() -> list[str]:
    """Every config as COMMAND/NAME, sorted; COMMAND is the one that reads it."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml"))


def path_of(name: str) -> Path:
    """The file of a config's name, with or without `.yaml`. UserError for one that there is not."""
    plain, known = name.removesuffix(".yaml").removeprefix("configs/"), names()
    if plain not in known:
        raise UserError(f"configs: no config {name!r}.{nearest(plain, known)} Known: {', '.join(known)}")
    return folder() / f"{plain}.yaml"


def about(name: str) -> str:
    """The first line of a config's opening comment: what it is."""
    first = path_of(name).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip()


def copy(name: str, to: str | Path) -> Path:
    """Copy a config to a file, or into a folder that exists; its path. UserError rather than replace anything."""
    source, target = path_of(name), Path(to)
    if target.is_dir():
        target = target / source.name
    try:
        with open(target, "x", encoding="utf-8") as file:  # "x": a file of that name is never written over
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"configs: {target} exists and was left as it is; give another name") from None
    except OSError as error:
        raise UserError(f"configs: cannot write {target} ({error.strerror})") from error
    return target


def main(argv: Sequence[str]) -> int:
    """List, show or copy the configs that come with the package."""
    parser = OneLineParser("ssl-kd configs", description=main.__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | show NAME | copy NAME [TO]")
    actions.add_parser("list", help="every config, a line each")
    show = actions.add_parser("show", help="print one")
    show.add_argument("name")
    taken = actions.add_parser("copy", help="copy one to a file of your own")
    taken.add_argument("name")
    taken.add_argument("to", nargs="?", default=".", help="file or folder (default: here)")
    options = parser.parse_args(argv)
    if options.action == "list":
        width = max(map(len, names()))
        for name in names():
            print(f"{name:<{width}}  {about(name)}")
        print("Next: ssl-kd configs copy compare/demo my.yaml, then ssl-kd compare my.yaml")
    elif options.action == "show":
        sys.stdout.write(path_of(options.name).read_text(encoding="utf-8"))
    else:
        written = copy(options.name, options.to)
        print(f"{written}\nNext: change it, then ssl-kd {path_of(options.name).parent.name} {written}")
    return 0
